import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { TITLE } from "../../lib/oci/artifact.ts";
import { oras } from "../../lib/oci/oras.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { asDigest, sha256OfText } from "../../lib/system/digest.ts";
import { failure } from "../support/failure.ts";
import { type FakeOras, fakeOras, shell } from "../support/fake_oras.ts";

const IMAGE = parseReference("localhost:5000/owner/vm:1");
const MANIFEST = JSON.stringify({ schemaVersion: 2, layers: [] });

/** A test with a stand-in for oras, which does as the script says. */
function test(
  name: string,
  script: string,
  body: (fake: FakeOras) => Promise<void>,
) {
  Deno.test({
    name,
    ...shell,
    async fn() {
      await using fake = await fakeOras(script);
      await body(fake);
    },
  });
}

test(
  "the version is what oras prints, without the number of its build",
  "echo 'Version:        1.3.0+unreleased'",
  async ({ env, args }) => {
    assertEquals(await oras({ env }).version(), "1.3.0");
    assertEquals(await args(), ["version"]);
  },
);

const NO_VERSION: [string, string, string][] = [
  ["that fails", "echo Version: 1.3.0; exit 1", "Version: 1.3.0"],
  ["that names none", "echo one; echo two >&2", "one\\ntwo"],
  ["that floods", "printf '%0300d' 0", "0".repeat(200)],
];

for (const [name, script, said] of NO_VERSION) {
  test(
    `a program ${name} is no oras, and its words are shown`,
    script,
    async ({ env, path }) => {
      const error = await failure("oras_failed", () => oras({ env }).version());
      assertEquals(
        error.message,
        `Cannot read the version of ${path}: it printed "${said}"`,
      );
      assertStringIncludes(error.hint!, "TOOLSMITH_ORAS must name oras");
    },
  );
}

test(
  "a manifest is named by the digest of what oras printed, whatever was asked",
  `printf '%s' '${MANIFEST}'`,
  async ({ env, args }) => {
    const digest = asDigest(await sha256OfText(MANIFEST));
    const found = await oras({ env }).fetchManifest(IMAGE);
    assertEquals(found.digest, digest);
    assertEquals(await args(), [
      "manifest",
      "fetch",
      "--plain-http=true",
      "localhost:5000/owner/vm:1",
    ]);
    const exact = { ...IMAGE, tag: undefined, digest };
    assertEquals((await oras({ env }).fetchManifest(exact)).digest, digest);
    const other = { ...exact, digest: asDigest("a".repeat(64)) };
    const error = await failure(
      "checksum_mismatch",
      () => oras({ env }).fetchManifest(other),
    );
    assertStringIncludes(error.message, `printed has the digest ${digest}`);
    assertStringIncludes(error.hint!, "TOOLSMITH_ORAS");
  },
);

test(
  "a registry that does not answer is a stall; who cancels gets the own reason",
  "exec sleep 60",
  async ({ env }) => {
    const stalled = await failure(
      "transfer_stalled",
      () => oras({ env, stallTimeoutMs: 100 }).fetchManifest(IMAGE),
    );
    assertEquals(
      stalled.message,
      "Cannot read localhost:5000/owner/vm:1: nothing moved for 0.1 s",
    );
    const signal = AbortSignal.abort(new Error("enough"));
    await assertRejects(
      () => oras({ env, signal }).fetchManifest(IMAGE),
      Error,
      "enough",
    );
    const digest = asDigest("c".repeat(64));
    const config = { mediaType: CONFIG, digest, size: 2 };
    const artifact = { ...await readable(), config };
    const client = oras({ env, stallTimeoutMs: 100 });
    assertEquals(await client.fetchArchitecture(artifact), undefined);
  },
);

const CONFIG = "application/vnd.oci.image.config.v1+json";

/** An artifact as it is read. */
async function readable() {
  await using fake = await fakeOras(`printf '%s' '${MANIFEST}'`);
  return await oras(fake).fetchManifest(IMAGE);
}

Deno.test({
  name:
    "an image's configuration names its processor, if it is one and is small",
  ...shell,
  async fn() {
    const digest = asDigest("c".repeat(64));
    const right = { mediaType: CONFIG, digest, size: 64 * 1024 };
    const arm = `echo '{"architecture":"arm64"}'`;
    const cases: [object | undefined, string, string | undefined, boolean][] = [
      [right, arm, "arm64", true],
      [right, `echo '{"architecture":7}'`, undefined, true],
      [right, "echo null", undefined, true],
      [right, "echo '{'", undefined, true],
      [right, `${arm}; exit 1`, undefined, true],
      [undefined, arm, undefined, false],
      [{ ...right, mediaType: "application/json" }, arm, undefined, false],
      [{ ...right, size: 64 * 1024 + 1 }, arm, undefined, false],
      [{ ...right, digest: "sha512:abc" }, arm, undefined, false],
    ];
    const artifact = await readable();
    for (const [config, script, expected, asked] of cases) {
      await using fake = await fakeOras(script);
      const all = { ...artifact, config } as typeof artifact;
      const { env, args } = fake;
      const found = await oras({ env }).fetchArchitecture(all);
      assertEquals(found, expected, `${JSON.stringify(config)} ${script}`);
      const call = ["blob", "fetch", "--plain-http=true", "--output", "-"];
      const name = `localhost:5000/owner/vm@${digest}`;
      assertEquals(await args(), asked ? [...call, name] : undefined);
    }
  },
});

test(
  "a pull may write as much as the manifest has, and not a byte more",
  `printf 0123456789 > "$out/image.qcow2"`,
  async ({ env, dir, args }) => {
    const counts: number[] = [];
    const into = join(dir, "pulled");
    await Deno.mkdir(into);
    const pull = (maxBytes: number) =>
      oras({ env }).pull(IMAGE, {
        dir: into,
        maxBytes,
        onBytes: (bytes) => counts.push(bytes),
      });
    await pull(10);
    assertEquals(counts, [10]);
    assertEquals(await args(), [
      ...["pull", "--plain-http=true", "--no-tty", "--output", into],
      "localhost:5000/owner/vm:1",
    ]);
    const { message } = await failure("artifact_unsafe", () => pull(9));
    assertEquals(
      message,
      "Cannot pull localhost:5000/owner/vm:1: 10 bytes were written, and its manifest has 9",
    );
  },
);

test(
  "a pull that writes nothing is a stall, by the caller's limit",
  "exec sleep 60",
  async ({ env, dir }) => {
    const options = { dir: join(dir, "none"), maxBytes: 10 };
    const { message } = await failure(
      "transfer_stalled",
      () => oras({ env, stallTimeoutMs: 100 }).pull(IMAGE, options),
    );
    assertEquals(
      message,
      "Cannot pull localhost:5000/owner/vm:1: nothing moved for 0.1 s",
    );
  },
);

const PUSHED = asDigest("f".repeat(64));

test(
  "a push names type, annotations and files from where they are, and no file can be an option",
  `pwd > "$0.cwd"; echo '{"digest":"${PUSHED}"}'`,
  async ({ env, dir, path, args }) => {
    const pushed = await oras({ env }).push(IMAGE, {
      files: [
        { path: "-x.qcow2", mediaType: "a/b" },
        { path: "./notes", mediaType: "text/plain" },
      ],
      cwd: dir,
      artifactType: "c/d",
      annotations: { [TITLE]: "x", note: "a=b" },
      bytes: 7,
    });
    assertEquals(pushed, PUSHED);
    assertEquals(await Deno.readTextFile(`${path}.cwd`), `${dir}\n`);
    assertEquals(await args(), [
      ...["push", "--plain-http=true", "--no-tty", "--format", "json"],
      ...["--artifact-type", "c/d", "--annotation", `${TITLE}=x`],
      ...["--annotation", "note=a=b", "--", "localhost:5000/owner/vm:1"],
      ...["-x.qcow2:a/b", "./notes:text/plain"],
    ]);
  },
);

test(
  "a push that reads nothing more is a stall",
  "exec sleep 60",
  async ({ env, dir }) => {
    const { message } = await failure(
      "transfer_stalled",
      () =>
        oras({ env, stallTimeoutMs: 100 }).push(IMAGE, {
          files: [{ path: "x", mediaType: "a/b" }],
          cwd: dir,
          artifactType: "c/d",
          annotations: {},
          bytes: 7,
        }),
    );
    assertEquals(
      message,
      "Cannot push localhost:5000/owner/vm:1: nothing moved for 0.1 s",
    );
  },
);
