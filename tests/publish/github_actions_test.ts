import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  jobSummary,
  publishFields,
  reportToActions,
  stepOutputs,
} from "../../lib/publish/github_actions.ts";
import { consumerManifest, formatManifest } from "../../lib/manifest/format.ts";
import type { PublishResult } from "../../lib/publish/publish.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect } from "../support/guest.ts";
import { replace } from "../support/replace.ts";

const SHA256 = "a".repeat(64);

const RESULT: PublishResult = {
  reference: "ghcr.io/owner/vm:1.0",
  digest: `sha256:${"b".repeat(64)}`,
  layerDigest: `sha256:${SHA256}`,
  sha256: SHA256,
  bytes: 1234,
  file: "my|`odd`\nimage.qcow2",
  verified: "manifest",
  attempts: 2,
  manifest: consumerManifest({
    name: "vm",
    source: "oci://ghcr.io/owner/vm:1.0",
    sha256: SHA256,
  }),
};

/** Reads step outputs as GitHub's runner does. */
function parseOutputs(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  const lines = text.split("\n");
  while (lines.length > 1) {
    const [name, end] = lines.shift()!.split("<<");
    const at = lines.indexOf(end);
    found[name] = lines.splice(0, at + 1).slice(0, -1).join("\n");
  }
  return found;
}

Deno.test("the job summary has a table and the manifest to paste", () => {
  const summary = jobSummary(RESULT);
  for (const value of [RESULT.reference, RESULT.digest, SHA256, "1234 bytes"]) {
    assertStringIncludes(summary, value);
  }
  const snippet = /```json\n([^`]*)```/.exec(summary)![1];
  assertEquals(snippet, formatManifest(RESULT.manifest));
});

Deno.test("an odd file name stays in its cell of the table", () => {
  const row = jobSummary(RESULT).split("\n")
    .find((line) => line.startsWith("| File"));
  assertEquals(row, "| File | `` my\\|`odd` image.qcow2 `` |");
});

Deno.test("the table says how it was verified, and quotes each value so that it stays whole", () => {
  const row = (name: string, result: Partial<PublishResult>) =>
    jobSummary({ ...RESULT, ...result }).split("\n")
      .find((line) => line.startsWith(`| ${name}`));
  assertEquals(
    row("Verified", { verified: "pull" }),
    "| Verified | `pulled back and hashed` |",
  );
  assertEquals(
    row("Verified", { verified: "manifest" }),
    "| Verified | `served with the same digests` |",
  );
  assertEquals(row("File", { file: "a.qcow2" }), "| File | `a.qcow2` |");
  assertEquals(row("File", { file: "a``b`c" }), "| File | ``` a``b`c ``` |");
  assertStringIncludes(jobSummary(RESULT), "|---|---|\n| Reference | `ghcr.io");
  assertStringIncludes(jobSummary(RESULT), "}\n```\n");
});

Deno.test("no value can add a step output of its own", () => {
  const values = { file: "x\nreference=evil\nend-0\nb<<c\nc", bytes: 7 };
  assertEquals(parseOutputs(stepOutputs(values)), {
    file: values.file,
    bytes: "7",
  });
});

Deno.test("summary and outputs are added to the files that GitHub names", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const summary = join(dir, "summary.md");
    const outputs = join(dir, "outputs");
    await Deno.writeTextFile(summary, "before\n");
    const env = new Map([
      ["GITHUB_STEP_SUMMARY", summary],
      ["GITHUB_OUTPUT", outputs],
    ]);
    await reportToActions(RESULT, { env });
    const written = await Deno.readTextFile(summary);
    assert(written.startsWith("before\n## "));
    const fields = publishFields(RESULT);
    assertEquals(
      parseOutputs(await Deno.readTextFile(outputs)),
      Object.fromEntries(
        Object.entries(fields).map(([name, value]) => [name, String(value)]),
      ),
    );
    assertEquals(fields.qcow2_sha256, SHA256);
    // Elsewhere there is nobody to tell.
    await reportToActions(RESULT, { env: new Map() });
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("reportToActions() settles when the report is written, the summary first", async () => {
  const written: string[] = [];
  using _system = replace(Deno, {
    async writeTextFile(path: string, _: string, { append }: { append: true }) {
      await new Promise((done) => setTimeout(done));
      written.push(`${path} ${append}`);
    },
  });
  const report = (summary: string, outputs: string) => {
    const env = new Map(
      [["GITHUB_STEP_SUMMARY", summary], ["GITHUB_OUTPUT", outputs]],
    );
    return reportToActions(RESULT, { env });
  };
  await report("a", "b");
  assertEquals(written, ["a true", "b true"]);
  await report("", "c");
  assertEquals(written.slice(2), ["c true"]);
});

Deno.test("reportToActions() warns of a file that cannot be written, and writes the other", async () => {
  await using dir = await temporaryDir();
  const missing = join(dir.path, "none", "file");
  const good = join(dir.path, "good");
  const names = ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"];
  for (const [bad, other] of [names, names.toReversed()]) {
    const { events, onEvent } = collect("warning");
    const env = new Map([[bad, missing], [other, good]]);
    await reportToActions(RESULT, { env, onEvent });
    assertEquals(events.map(({ message }) => message), [
      `Cannot write to ${missing}, which ${bad} names: no such file or directory; unset ${bad}, or name another file`,
    ]);
    assertStringIncludes(await Deno.readTextFile(good), SHA256);
    await Deno.remove(good);
  }
});
