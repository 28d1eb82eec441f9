import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { TITLE } from "../../lib/oci/artifact.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { run } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";
import { startProxy } from "../support/proxy.ts";
import {
  PASSWORD,
  type Registry,
  startRegistry,
  USERNAME,
} from "../support/registry.ts";
import {
  type JobOptions,
  readAction,
  readWorkflow,
  runJob,
} from "../support/workflow.ts";
import { makeQcow2, TYPE } from "../support/workspace.ts";

const PUBLISH = readWorkflow("publish-oci.yml");
const WORKFLOWS = [...Deno.readDirSync(join(ROOT, ".github", "workflows"))]
  .map(({ name }) => name);

/**
 * Stands before oras on PATH. The workflow speaks to ghcr.io by TLS; this turns
 * the name into the test registry's, which speaks plain HTTP on loopback, and
 * notes which subcommands were called, and who has a password. What runs is the
 * real oras.
 */
const ORAS = `#!/bin/bash
with=
args=()
for arg in "$@"; do
  [[ $arg != --password-stdin ]] || with=" with a password"
  [[ $arg != --plain-http=false ]] || arg=--plain-http=true
  args+=("\${arg//ghcr.io/$TEST_REGISTRY}")
done
echo "$1$with" >> "$TEST_CALLS"
exec "$TEST_ORAS" "\${args[@]}"
`;

/** Stands before deno: JSR's Toolsmith is this checkout's. */
const DENO = `#!/bin/bash
[[ $* == "run --no-config --no-lock -A jsr:@fountain/toolsmith@${VERSION} "* ]] || exit 99
shift 5
exec "$TEST_DENO" run --quiet -A "$TEST_CONFIG" \${TEST_IMPORTS:+"$TEST_IMPORTS"} "$TEST_CLI" "$@"
`;

interface Bench {
  /** The checkout, with an image in `dist/`. */
  checkout: string;
  image: string;
  sha256: string;
  registry: Registry;
  /** The runner's temporary directory. */
  temp: string;
  /** Runs the job; inputs and what else is given override the usual. */
  publish(
    inputs?: Record<string, string>,
    options?: Partial<JobOptions> & { registry?: string },
  ): ReturnType<typeof runJob>;
  /** The subcommands of oras that were called so far. */
  calls(): Promise<string[]>;
}

/** Runs one test on a runner of its own, before a registry with a password. */
function test(
  name: string,
  body: (bench: Bench) => Promise<void>,
  auth: "basic" | "none" = "basic",
) {
  Deno.test({
    name,
    // The workflow runs on Ubuntu, with its GNU tools.
    ignore: needs("oras", "registry", "qemuImg").ignore ||
      Deno.build.os !== "linux",
    async fn() {
      const made = await Deno.makeTempDir({ prefix: "toolsmith-test-" });
      const dir = await Deno.realPath(made);
      try {
        const checkout = join(dir, "checkout");
        const temp = join(dir, "temp");
        const bin = join(dir, "bin");
        await Promise.all([checkout, temp, bin].map((dir) => Deno.mkdir(dir)));
        await Deno.writeTextFile(join(bin, "oras"), ORAS, { mode: 0o755 });
        await Deno.writeTextFile(join(bin, "deno"), DENO, { mode: 0o755 });
        const [, imports = ""] = await denoArgs(["run"]);
        const image = join(checkout, "dist", "image.qcow2");
        const { sha256 } = await makeQcow2(image);
        const called = join(dir, "calls");
        await Deno.writeTextFile(called, "");
        await using registry = await startRegistry({ auth });
        await body({
          checkout,
          image,
          sha256,
          registry,
          temp,
          calls: async () =>
            (await Deno.readTextFile(called)).trim().split("\n"),
          publish: (inputs = {}, options = {}) =>
            runJob(PUBLISH.jobs.publish, {
              cwd: checkout,
              ...options,
              context: {
                "inputs.qcow2_path": "dist/image.qcow2",
                "inputs.artifact_name": "",
                "inputs.image_ref": "",
                "github.repository": "Owner/My.Repo",
                "github.actor": USERNAME,
                "github.token": PASSWORD,
                "runner.temp": temp,
                ...inputs,
              },
              env: {
                PATH: `${bin}:${Deno.env.get("PATH")}`,
                TEST_CALLS: called,
                TEST_ORAS: parts.oras!,
                TEST_DENO: Deno.execPath(),
                TEST_CONFIG: `--config=${ROOT}/deno.json`,
                TEST_IMPORTS: imports,
                TEST_CLI: `${ROOT}/mod.ts`,
                TOOLSMITH_ORAS: "",
                TEST_REGISTRY: options.registry ?? registry.host,
                DOCKER_CONFIG: join(dir, "none"),
                INTERVAL: "0.05",
                ...options.env,
              },
            }),
        });
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}

async function served({ host }: Registry, path: string) {
  const response = await fetch(`http://${host}/v2/${path}`, {
    headers: {
      accept: "application/vnd.oci.image.manifest.v1+json",
      authorization: `Basic ${btoa(`${USERNAME}:${PASSWORD}`)}`,
    },
  });
  assertEquals(response.status, 200);
  const digest = response.headers.get("docker-content-digest");
  return { digest, manifest: await response.json() };
}

test("the workflow publishes as the guide says, and says what it did", async (bench) => {
  const { publish, registry, sha256, temp } = bench;
  const { failed, log, outputs, summary } = await publish();
  assertEquals(failed, undefined, log);
  const reference = "ghcr.io/owner/my.repo:latest";
  const { digest, manifest } = await served(
    registry,
    "owner/my.repo/manifests/latest",
  );
  assertEquals(outputs["publish.reference"], reference);
  assertEquals(outputs["publish.digest"], digest);
  assertEquals(outputs["publish.qcow2_sha256"], sha256);
  assertEquals(manifest.artifactType, TYPE);
  assertEquals(manifest.annotations[TITLE], "image.qcow2");
  assertEquals(manifest.layers.length, 1);
  assertEquals(manifest.layers[0].mediaType, TYPE);
  assertEquals(manifest.layers[0].digest, `sha256:${sha256}`);
  assertEquals(manifest.layers[0].annotations, { [TITLE]: "image.qcow2" });

  for (const value of [reference, digest!, sha256]) {
    assertStringIncludes(summary, value);
  }
  const snippet = /```json\n([^`]*)```/.exec(summary)![1];
  const { image } = parseManifest(snippet, "tools.json");
  assertEquals([image.name, image.sha256], ["my.repo", sha256]);

  assert(!log.includes(PASSWORD), "the token was printed");
  assertEquals([...Deno.readDirSync(temp)], [], "something stayed behind");
});

test("the same bytes published again have the same digest", async (bench) => {
  const first = await bench.publish();
  const again = await bench.publish();
  assertEquals(
    again.outputs["publish.digest"],
    first.outputs["publish.digest"],
  );
});

test("a hostile path is a path and nothing else", async (bench) => {
  const { checkout, image, publish, registry } = bench;
  const name = "a $(touch pwned) `touch pwned`; 'b\" : c.qcow2";
  const path = join(checkout, "di st", name);
  await Deno.mkdir(join(checkout, "di st"));
  await Deno.rename(image, path);
  const { failed, log } = await publish({
    "inputs.qcow2_path": `di st/${name}`,
    "inputs.image_ref": "oci://ghcr.io/Owner/VM:V1",
  });
  assertEquals(failed, undefined, log);
  const { manifest } = await served(registry, "owner/vm/manifests/V1");
  // Characters that some systems do not have in names become dashes.
  const title = "a $(touch pwned) `touch pwned`; 'b- - c.qcow2";
  assertEquals(manifest.layers[0].annotations[TITLE], title);
  for (const dir of [checkout, join(checkout, "di st")]) {
    const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
    assert(!names.includes("pwned"));
  }
});

test("a hostile or malformed reference is refused", async (bench) => {
  const wrong = [
    "ghcr.io/o/r:1\nregistry=evil.example",
    "ghcr.io/o/r:$(touch pwned)",
    "ghcr.io/o/r:1 --insecure",
    "-u/o/r:1",
    "ghcr.io",
    "ghcr.io/o/r:",
    `ghcr.io/o/r@sha256:${"a".repeat(64)}`,
  ];
  for (const reference of wrong) {
    const result = await bench.publish({ "inputs.image_ref": reference });
    assertEquals(result.failed, "Publish", reference);
    assertMatch(result.log, /\[(reference_invalid|usage)\]/, reference);
    assertEquals([result.outputs, result.summary], [{}, ""]);
  }
  assertEquals(await bench.calls(), [""]);
});

test("the job's token is for ghcr.io and no other registry", async (bench) => {
  const { registry, publish, calls } = bench;
  const { failed, log } = await publish({
    "inputs.image_ref": `${registry.host}/o/r:1`,
  });
  assertEquals(failed, undefined, log);
  assertEquals(await calls(), ["push", "manifest", "pull"]);
}, "none");

test("what is no image to publish fails before the push", async (bench) => {
  const { checkout, image, publish, calls } = bench;
  await Deno.writeFile(join(checkout, "raw.qcow2"), new Uint8Array(1000));
  for (
    const args of [
      ["-F", "qcow2", "-b", image, join(checkout, "overlay.qcow2")],
      ["-o", `data_file=${checkout}/d`, join(checkout, "split.qcow2"), "1M"],
    ]
  ) {
    const create = ["create", "-q", "-f", "qcow2", ...args];
    assertEquals((await run("qemu-img", { args: create })).code, 0);
  }
  const cases = [
    ["gone.qcow2", "source_not_found"],
    ["raw.qcow2", "image_invalid"],
    ["overlay.qcow2", "image_unsafe"],
    ["split.qcow2", "image_unsafe"],
    ["--extra=/etc/passwd:text/plain", "usage"],
  ];
  for (const [path, code] of cases) {
    const result = await publish({ "inputs.qcow2_path": path });
    assertEquals(result.failed, "Publish", path);
    assertStringIncludes(result.log, `[${code}]`);
  }
  assertEquals(await calls(), [""]);
});

test("a wrong token fails the job, and is not printed", async (bench) => {
  const result = await bench.publish({ "github.token": "wrong-token" });
  assertEquals(result.failed, "Publish");
  assertStringIncludes(result.log, "[unauthorized]");
  assertEquals([result.outputs, result.summary], [{}, ""]);
  assert(!result.log.includes("wrong-token"));
  assertEquals([...Deno.readDirSync(bench.temp)], []);
});

test("a tag that is served late is polled for", async (bench) => {
  await using late = startProxy(bench.registry.host, [
    { match: /^(?!PUT ).*\/manifests\/latest$/, status: 404, times: 3 },
  ]);
  const { failed, log } = await bench.publish({}, { registry: late.host });
  assertEquals(failed, undefined, log);
  assertStringIncludes(log, "not served yet (1 of 20)");
}, "none");

test(
  "an image that the registry never serves fails the job, without a summary",
  async (bench) => {
    await using never = startProxy(bench.registry.host, [
      { match: /^(?!PUT ).*\/manifests\//, status: 404, times: 1000 },
    ]);
    const result = await bench.publish({}, {
      registry: never.host,
      env: { ATTEMPTS: "3" },
    });
    assertEquals(result.failed, "Publish", result.log);
    assertStringIncludes(result.log, "[publish_timeout]");
    assertEquals([result.outputs, result.summary], [{}, ""]);
  },
  "none",
);

Deno.test("the workflow has the guide's triggers, inputs and pins", () => {
  const { on, permissions, jobs } = PUBLISH;
  assertEquals(on.workflow_call.inputs, on.workflow_dispatch.inputs);
  const { qcow2_path, artifact_name, image_ref } = on.workflow_call.inputs!;
  assertEquals(qcow2_path.default, "dist/image.qcow2");
  assertEquals([artifact_name.default, image_ref.default], ["", ""]);
  assertEquals(Object.keys(on.workflow_call.outputs!), [
    "reference",
    "digest",
    "qcow2_sha256",
  ]);
  assertEquals(permissions, { contents: "read", packages: "write" });
  const { steps } = jobs.publish;
  const setup = steps.find(({ uses }) => uses?.includes("setup-oras"))!;
  assertEquals(setup.uses, "oras-project/setup-oras@v1");
  assertEquals(setup.with!.version, "1.3.0");
  const { env } = steps.find(({ id }) => id === "publish")!;
  assertEquals([env!.ATTEMPTS, env!.INTERVAL], ["20", "6"]);
  assertEquals(env!.TOOLSMITH, `jsr:@fountain/toolsmith@${VERSION}`);
});

Deno.test({
  name:
    "a release's install.sh and Containerfile name its repository and version",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    await Deno.mkdir(join(dir.path, "dist"));
    const names = ["install.sh", "Containerfile"];
    for (const name of names) {
      await Deno.copyFile(join(ROOT, name), join(dir.path, name));
    }
    const done = await runJob(readWorkflow("release.yml").jobs.binaries, {
      cwd: dir.path,
      context: {
        "github.repository": "owner/toolsmith",
        "github.ref_name": "v9.8.7",
        "runner.temp": dir.path,
      },
      only: ["Name this repository and version in what installs the program"],
    });
    assertEquals(done.failed, undefined, done.log);
    const [install, containerfile] = await Promise.all(
      names.map((name) => Deno.readTextFile(join(dir.path, "dist", name))),
    );
    assert(!`${install}${containerfile}`.includes("@REPOSITORY@"));
    assertMatch(install, /github\.com\/owner\/toolsmith\/releases/);
    assertMatch(containerfile, /^ARG VERSION=9\.8\.7$/m);
  },
});

Deno.test("no workflow puts an expression into a shell script, nor does the action", () => {
  const jobs = WORKFLOWS.flatMap((name) =>
    Object.values(readWorkflow(name).jobs)
  );
  for (const { steps } of [...jobs, readAction().runs]) {
    for (const { run } of steps ?? []) assert(!run?.includes("${{"), run);
  }
});

Deno.test({
  name: "actionlint has nothing against any workflow",
  ...needs("actionlint"),
  async fn() {
    const { code, stdout } = await run(parts.actionlint!, { cwd: ROOT });
    assertEquals(code, 0, stdout);
  },
});
