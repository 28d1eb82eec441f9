import {
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { sha256OfText, sha256ToDigest } from "../../lib/system/digest.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { type FakeOras, fakeOras, shell } from "../support/fake_oras.ts";

const IMAGE = parseReference("localhost:5000/owner/vm:1");
const MANIFEST = JSON.stringify({ schemaVersion: 2, layers: [] });

/** Registers a test with a shell script in place of oras. */
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
  "OrasClient.version() returns oras's version without build metadata",
  "echo 'Version:        1.3.0+unreleased'",
  async ({ env, args }) => {
    assertEquals(await orasClient({ env }).version(), "1.3.0");
    assertEquals(await args(), ["version"]);
  },
);

const NO_VERSION: [string, string, string][] = [
  ["that fails", "echo Version: 1.3.0; exit 1", "Version: 1.3.0"],
  ["that prints no version", "echo one; echo two >&2", "one\\ntwo"],
  ["that prints too much", "printf '%0300d' 0", "0".repeat(200)],
];

for (const [name, script, said] of NO_VERSION) {
  test(
    `OrasClient.version() throws oras_failed and quotes the output of a program ${name}`,
    script,
    async ({ env, path }) => {
      const error = await expectFailure(
        "oras_failed",
        () => orasClient({ env }).version(),
      );
      assertEquals(
        error.message,
        `Cannot read the version of ${path}: unexpected output "${said}"`,
      );
      assertStringIncludes(
        error.hint!,
        "set TOOLSMITH_ORAS to the path of oras",
      );
    },
  );
}

test(
  "OrasClient.fetchManifest() hashes oras's output and rejects a digest other than the reference's",
  `printf '%s' '${MANIFEST}'`,
  async ({ env, args }) => {
    const digest = sha256ToDigest(await sha256OfText(MANIFEST));
    const found = await orasClient({ env }).fetchManifest(IMAGE);
    assertEquals(found.digest, digest);
    assertEquals(await args(), [
      "manifest",
      "fetch",
      "--plain-http=true",
      "localhost:5000/owner/vm:1",
    ]);
    const exact = { ...IMAGE, tag: undefined, digest };
    assertEquals(
      (await orasClient({ env }).fetchManifest(exact)).digest,
      digest,
    );
    const other = { ...exact, digest: sha256ToDigest("a".repeat(64)) };
    const error = await expectFailure(
      "checksum_mismatch",
      () => orasClient({ env }).fetchManifest(other),
    );
    assertStringIncludes(
      error.message,
      `printed a manifest with the digest ${digest}`,
    );
    assertStringIncludes(error.hint!, "TOOLSMITH_ORAS");
  },
);

test(
  "OrasClient.fetchManifest() throws transfer_stalled for a silent registry, and the caller's abort reason",
  "exec sleep 60",
  async ({ env }) => {
    const stalled = await expectFailure(
      "transfer_stalled",
      () => orasClient({ env, stallTimeoutMs: 100 }).fetchManifest(IMAGE),
    );
    assertEquals(
      stalled.message,
      "Cannot read localhost:5000/owner/vm:1: no progress for 0.1 s",
    );
    const signal = AbortSignal.abort(new Error("enough"));
    await assertRejects(
      () => orasClient({ env, signal }).fetchManifest(IMAGE),
      Error,
      "enough",
    );
    const digest = sha256ToDigest("c".repeat(64));
    const config = { mediaType: CONFIG, digest, size: 2 };
    const artifact = { ...await readable(), config };
    const client = orasClient({ env, stallTimeoutMs: 100 });
    assertEquals(await client.fetchArchitecture(artifact), undefined);
  },
);

const CONFIG = "application/vnd.oci.image.config.v1+json";

async function readable() {
  await using fake = await fakeOras(`printf '%s' '${MANIFEST}'`);
  return await orasClient(fake).fetchManifest(IMAGE);
}

Deno.test({
  name:
    "OrasClient.fetchArchitecture() reads the architecture from a small OCI image config only",
  ...shell,
  async fn() {
    const digest = sha256ToDigest("c".repeat(64));
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
      const found = await orasClient({ env }).fetchArchitecture(all);
      assertEquals(found, expected, `${JSON.stringify(config)} ${script}`);
      const call = ["blob", "fetch", "--output", "-", "--plain-http=true"];
      const name = `localhost:5000/owner/vm@${digest}`;
      assertEquals(await args(), asked ? [...call, name] : undefined);
    }
  },
});

test(
  "OrasClient.pull() throws artifact_unsafe when oras writes one byte more than maxBytes",
  `printf 0123456789 > "$out/image.qcow2"`,
  async ({ env, dir, args }) => {
    const counts: number[] = [];
    const into = join(dir, "pulled");
    await Deno.mkdir(into);
    const pull = (maxBytes: number) =>
      orasClient({ env }).pull(IMAGE, {
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
    const { message } = await expectFailure("artifact_unsafe", () => pull(9));
    assertEquals(
      message,
      "Cannot pull localhost:5000/owner/vm:1: oras wrote 10 bytes, the manifest declares 9",
    );
  },
);

test(
  "OrasClient.pull() throws transfer_stalled when oras writes nothing for the stall timeout",
  "exec sleep 60",
  async ({ env, dir }) => {
    const options = { dir: join(dir, "none"), maxBytes: 10 };
    const { message } = await expectFailure(
      "transfer_stalled",
      () => orasClient({ env, stallTimeoutMs: 100 }).pull(IMAGE, options),
    );
    assertEquals(
      message,
      "Cannot pull localhost:5000/owner/vm:1: no progress for 0.1 s",
    );
  },
);

const PUSHED = sha256ToDigest("f".repeat(64));

test(
  "OrasClient.push() passes artifact type, annotations and files to oras, with -- before file names",
  `pwd > "$0.cwd"; echo '{"digest":"${PUSHED}"}'`,
  async ({ env, dir, path, args }) => {
    const pushed = await orasClient({ env }).push(IMAGE, {
      files: [
        { path: "-x.qcow2", mediaType: "a/b" },
        { path: "./notes", mediaType: "text/plain" },
      ],
      cwd: dir,
      artifactType: "c/d",
      annotations: { [TITLE_ANNOTATION]: "x", note: "a=b" },
      totalBytes: 7,
    });
    assertEquals(pushed, PUSHED);
    assertEquals(await Deno.readTextFile(`${path}.cwd`), `${dir}\n`);
    assertEquals(await args(), [
      ...["push", "--plain-http=true", "--no-tty", "--format", "json"],
      ...["--artifact-type", "c/d", "--annotation", `${TITLE_ANNOTATION}=x`],
      ...["--annotation", "note=a=b", "--", "localhost:5000/owner/vm:1"],
      ...["-x.qcow2:a/b", "./notes:text/plain"],
    ]);
  },
);

Deno.test({
  name: "OrasClient.push() throws oras_failed when oras prints no digest",
  ...shell,
  async fn() {
    const printed = ["null", "1", "[]", '"x"', "{}", '{"digest":1}', ""];
    for (const text of printed) {
      await using fake = await fakeOras(`printf '%s' '${text}'`);
      const push = () =>
        orasClient(fake).push(IMAGE, {
          ...{ files: [], cwd: fake.dir, artifactType: "c/d" },
          ...{ annotations: {}, totalBytes: 7 },
        });
      const { message } = await expectFailure("oras_failed", push);
      assertMatch(message, /^oras push printed no digest: "/);
    }
  },
});

test(
  "OrasClient.push() throws transfer_stalled when oras reads nothing for the stall timeout",
  "exec sleep 60",
  async ({ env, dir }) => {
    const { message } = await expectFailure(
      "transfer_stalled",
      () =>
        orasClient({ env, stallTimeoutMs: 100 }).push(IMAGE, {
          files: [{ path: "x", mediaType: "a/b" }],
          cwd: dir,
          artifactType: "c/d",
          annotations: {},
          totalBytes: 7,
        }),
    );
    assertEquals(
      message,
      "Cannot push localhost:5000/owner/vm:1: no progress for 0.1 s",
    );
  },
);
