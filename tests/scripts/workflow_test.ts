import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { foundTools, requires } from "../support/parts.ts";
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
const WORKFLOWS = [
  ...Deno.readDirSync(join(PROJECT_ROOT, ".github", "workflows")),
]
  .map(({ name }) => name);

/**
 * A wrapper of the real oras on PATH. It replaces ghcr.io with the test registry, which
 * speaks plain HTTP on loopback, and logs subcommands and which had a password.
 */
const ORAS = `#!/bin/bash
with=
args=()
for arg in "$@"; do
  [[ $arg != --password-stdin ]] || with=" with a password"
  [[ $arg != --plain-http=false ]] || arg=--plain-http=true
  args+=("\${arg//ghcr.io/$TEST_REGISTRY}")
done
[[ $1 != login ]] || args+=(--plain-http)
echo "$1$with" >> "$TEST_CALLS"
exec "$TEST_ORAS" "\${args[@]}"
`;

/** A wrapper of deno that runs this checkout instead of JSR's Toolsmith. */
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
  /** Runs the job; given inputs and options override the defaults. */
  publish(
    inputs?: Record<string, string>,
    options?: Partial<JobOptions> & { registry?: string },
  ): ReturnType<typeof runJob>;
  /** The subcommands of oras that were called so far. */
  calls(): Promise<string[]>;
}

/** Runs a test with a new runner and a registry with a password. */
function test(
  name: string,
  body: (bench: Bench) => Promise<void>,
  auth: "basic" | "none" = "basic",
) {
  Deno.test({
    name,
    // The workflow needs Ubuntu's GNU tools.
    ignore: requires("oras", "registry", "qemuImg").ignore ||
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
        const [, imports = ""] = await withImportMap(["run"]);
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
                "inputs.attest": "false",
                "github.repository": "Owner/My.Repo",
                "github.actor": USERNAME,
                "github.token": PASSWORD,
                "runner.temp": temp,
                ...inputs,
              },
              env: {
                PATH: `${bin}:${Deno.env.get("PATH")}`,
                TEST_CALLS: called,
                TEST_ORAS: foundTools.oras!,
                TEST_DENO: Deno.execPath(),
                TEST_CONFIG: `--config=${PROJECT_ROOT}/deno.json`,
                TEST_IMPORTS: imports,
                TEST_CLI: `${PROJECT_ROOT}/mod.ts`,
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

test("publish-oci.yml publishes as docs describe and writes a job summary", async (bench) => {
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
  assertEquals(manifest.annotations[TITLE_ANNOTATION], "image.qcow2");
  assertEquals(manifest.layers.length, 1);
  assertEquals(manifest.layers[0].mediaType, TYPE);
  assertEquals(manifest.layers[0].digest, `sha256:${sha256}`);
  assertEquals(manifest.layers[0].annotations, {
    [TITLE_ANNOTATION]: "image.qcow2",
  });

  for (const value of [reference, digest!, sha256]) {
    assertStringIncludes(summary, value);
  }
  const snippet = /```json\n([^`]*)```/.exec(summary)![1];
  const { image } = parseManifest(snippet, "tools.json");
  assertEquals([image.name, image.sha256], ["my.repo", sha256]);

  assert(!log.includes(PASSWORD), "the token was printed");
  assertEquals([...Deno.readDirSync(temp)], [], "something stayed behind");
});

test("publish-oci.yml signs the manifest's digest, unless an input turns it off", async (bench) => {
  const { publish, calls, temp } = bench;
  const used: Record<string, Record<string, string>> = {};
  const uses = (action: string, inputs: Record<string, string>) => {
    used[action.replace(/@.*/, "")] = inputs;
    return Promise.resolve();
  };
  const attest = "actions/attest-build-provenance";
  const unsigned = await publish({}, { uses });
  assertEquals([unsigned.failed, used[attest]], [undefined, undefined]);
  const before = (await calls()).length;
  const { failed, log, outputs } = await publish({ "inputs.attest": "true" }, {
    uses,
    env: { DOCKER_CONFIG: join(temp, "signing", ".docker") },
  });
  assertEquals(failed, undefined, log);
  assertEquals(used[attest], {
    "subject-name": "ghcr.io/owner/my.repo",
    "subject-digest": outputs["publish.digest"],
    "push-to-registry": "true",
    "create-storage-record": "false",
  });
  assertEquals(
    (await calls()).slice(before).includes("login with a password"),
    true,
  );
  assert(!log.includes(PASSWORD), "the token was printed");
});

test("publish-oci.yml produces the same digest for the same bytes", async (bench) => {
  const first = await bench.publish();
  const again = await bench.publish();
  assertEquals(
    again.outputs["publish.digest"],
    first.outputs["publish.digest"],
  );
});

test("publish-oci.yml publishes a path with shell syntax without running it", async (bench) => {
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
  // Characters that are invalid in names on some systems become dashes.
  const title = "a $(touch pwned) `touch pwned`; 'b- - c.qcow2";
  assertEquals(manifest.layers[0].annotations[TITLE_ANNOTATION], title);
  for (const dir of [checkout, join(checkout, "di st")]) {
    const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
    assert(!names.includes("pwned"));
  }
});

test("publish-oci.yml rejects a hostile or malformed reference", async (bench) => {
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

test("publish-oci.yml uses the job's token for ghcr.io only", async (bench) => {
  const { registry, publish, calls } = bench;
  const { failed, log } = await publish({
    "inputs.image_ref": `${registry.host}/o/r:1`,
  });
  assertEquals(failed, undefined, log);
  assertEquals(await calls(), ["push", "manifest", "pull"]);
}, "none");

test("publish-oci.yml fails before the push for a file that is not an image", async (bench) => {
  const { checkout, image, publish, calls } = bench;
  await Deno.writeFile(join(checkout, "raw.qcow2"), new Uint8Array(1000));
  for (
    const args of [
      ["-F", "qcow2", "-b", image, join(checkout, "overlay.qcow2")],
      ["-o", `data_file=${checkout}/d`, join(checkout, "split.qcow2"), "1M"],
    ]
  ) {
    const create = ["create", "-q", "-f", "qcow2", ...args];
    assertEquals((await runProcess("qemu-img", { args: create })).code, 0);
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

test("publish-oci.yml fails with a wrong token and does not print it", async (bench) => {
  const result = await bench.publish({ "github.token": "wrong-token" });
  assertEquals(result.failed, "Publish");
  assertStringIncludes(result.log, "[unauthorized]");
  assertEquals([result.outputs, result.summary], [{}, ""]);
  assert(!result.log.includes("wrong-token"));
  assertEquals([...Deno.readDirSync(bench.temp)], []);
});

test("publish-oci.yml polls for a tag that is served late", async (bench) => {
  await using late = startProxy(bench.registry.host, [
    { match: /^(?!PUT ).*\/manifests\/latest$/, status: 404, times: 3 },
  ]);
  const { failed, log } = await bench.publish({}, { registry: late.host });
  assertEquals(failed, undefined, log);
  assertStringIncludes(
    log,
    "does not serve the artifact yet (attempt 1 of 20)",
  );
}, "none");

test(
  "publish-oci.yml fails without a summary when the registry never serves the image",
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

Deno.test("publish-oci.yml has the documented triggers, inputs and pinned actions", () => {
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
  assertEquals(on.workflow_call.inputs!.attest.default, true);
  assertEquals(permissions, {
    contents: "read",
    packages: "write",
    "id-token": "write",
    attestations: "write",
  });
  const { steps } = jobs.publish;
  const setup = steps.find(({ uses }) => uses?.includes("setup-oras"))!;
  assertEquals(setup.uses, "oras-project/setup-oras@v1");
  assertEquals(setup.with!.version, "1.3.0");
  const { env } = steps.find(({ id }) => id === "publish")!;
  assertEquals([env!.ATTEMPTS, env!.INTERVAL], ["20", "6"]);
  const sign = steps.find(({ uses }) => uses?.includes("attest"))!;
  assertMatch(sign.uses!, /^actions\/attest-build-provenance@[0-9a-f]{40}$/);
  // The action looks for the log-in in the home directory.
  const login = steps.find(({ id }) => id === "signature")!;
  assertEquals(login.env!.DOCKER_CONFIG, `${sign.env!.HOME}/.docker`);
  assertEquals(env!.TOOLSMITH, `jsr:@fountain/toolsmith@${VERSION}`);
});

Deno.test({
  name:
    "release.yml writes its repository and version into install.sh and Containerfile",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    await Deno.mkdir(join(dir.path, "dist"));
    const names = ["install.sh", "Containerfile"];
    for (const name of names) {
      await Deno.copyFile(join(PROJECT_ROOT, name), join(dir.path, name));
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

Deno.test("workflows and action.yml put no expression into a shell script", () => {
  const jobs = WORKFLOWS.flatMap((name) =>
    Object.values(readWorkflow(name).jobs)
  );
  for (const { steps } of [...jobs, readAction().runs]) {
    for (const { run } of steps ?? []) assert(!run?.includes("${{"), run);
  }
});

Deno.test({
  name: "actionlint accepts every workflow",
  ...requires("actionlint"),
  async fn() {
    const { code, stdout } = await runProcess(foundTools.actionlint!, {
      cwd: PROJECT_ROOT,
    });
    assertEquals(code, 0, stdout);
  },
});
