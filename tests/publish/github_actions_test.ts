import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  jobSummaryMarkdown,
  publishOutputFields,
  reportToGithubActions,
  stepOutputsText,
} from "../../lib/publish/github_actions.ts";
import {
  createManifestJson,
  formatManifestJson,
} from "../../lib/manifest/manifest_json.ts";
import type { PublishResult } from "../../lib/publish/publish.ts";
import { temporaryDir } from "../support/directory.ts";
import { collectEvents } from "../support/guest.ts";
import { replaceMethod } from "../support/replace_method.ts";

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
  manifest: createManifestJson({
    name: "vm",
    source: "oci://ghcr.io/owner/vm:1.0",
    sha256: SHA256,
  }),
};

/** Parses step outputs as GitHub's runner does. */
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

Deno.test("GitHub Actions report: the job summary has a table and the manifest to paste", () => {
  const summary = jobSummaryMarkdown(RESULT);
  for (const value of [RESULT.reference, RESULT.digest, SHA256, "1234 bytes"]) {
    assertStringIncludes(summary, value);
  }
  const snippet = /```json\n([^`]*)```/.exec(summary)![1];
  assertEquals(snippet, formatManifestJson(RESULT.manifest));
});

Deno.test("GitHub Actions report: a file name with | and backticks stays in its table cell", () => {
  const row = jobSummaryMarkdown(RESULT).split("\n")
    .find((line) => line.startsWith("| File"));
  assertEquals(row, "| File | `` my\\|`odd` image.qcow2 `` |");
});

Deno.test("GitHub Actions report: the table shows the verification and quotes each value", () => {
  const row = (name: string, result: Partial<PublishResult>) =>
    jobSummaryMarkdown({ ...RESULT, ...result }).split("\n")
      .find((line) => line.startsWith(`| ${name}`));
  assertEquals(
    row("Verified", { verified: "pull" }),
    "| Verified | `image pulled and hashed` |",
  );
  assertEquals(
    row("Verified", { verified: "manifest" }),
    "| Verified | `registry serves the same digests` |",
  );
  assertEquals(row("File", { file: "a.qcow2" }), "| File | `a.qcow2` |");
  assertEquals(row("File", { file: "a``b`c" }), "| File | ``` a``b`c ``` |");
  assertStringIncludes(
    jobSummaryMarkdown(RESULT),
    "|---|---|\n| Reference | `ghcr.io",
  );
  assertStringIncludes(jobSummaryMarkdown(RESULT), "}\n```\n");
});

Deno.test("GitHub Actions report: a multi-line value cannot add a step output", () => {
  const values = { file: "x\nreference=evil\nend-0\nb<<c\nc", bytes: 7 };
  assertEquals(parseOutputs(stepOutputsText(values)), {
    file: values.file,
    bytes: "7",
  });
});

Deno.test("reportToGithubActions() appends to the files in GITHUB_STEP_SUMMARY and GITHUB_OUTPUT", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const summary = join(dir, "summary.md");
    const outputs = join(dir, "outputs");
    await Deno.writeTextFile(summary, "before\n");
    const env = new Map([
      ["GITHUB_STEP_SUMMARY", summary],
      ["GITHUB_OUTPUT", outputs],
    ]);
    await reportToGithubActions(RESULT, { env });
    const written = await Deno.readTextFile(summary);
    assert(written.startsWith("before\n## "));
    const fields = publishOutputFields(RESULT);
    assertEquals(
      parseOutputs(await Deno.readTextFile(outputs)),
      Object.fromEntries(
        Object.entries(fields).map(([name, value]) => [name, String(value)]),
      ),
    );
    assertEquals(fields.qcow2_sha256, SHA256);
    // Without a listener there is no warning.
    await reportToGithubActions(RESULT, { env: new Map() });
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("reportToGithubActions() writes the summary first and settles after the last write", async () => {
  const written: string[] = [];
  using _system = replaceMethod(Deno, {
    async writeTextFile(path: string, _: string, { append }: { append: true }) {
      await new Promise((done) => setTimeout(done));
      written.push(`${path} ${append}`);
    },
  });
  const report = (summary: string, outputs: string) => {
    const env = new Map(
      [["GITHUB_STEP_SUMMARY", summary], ["GITHUB_OUTPUT", outputs]],
    );
    return reportToGithubActions(RESULT, { env });
  };
  await report("a", "b");
  assertEquals(written, ["a true", "b true"]);
  await report("", "c");
  assertEquals(written.slice(2), ["c true"]);
});

Deno.test("reportToGithubActions() warns of a file that is not writable and writes the other one", async () => {
  await using dir = await temporaryDir();
  const missing = join(dir.path, "none", "file");
  const good = join(dir.path, "good");
  const names = ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"];
  for (const [bad, other] of [names, names.toReversed()]) {
    const { events, onEvent } = collectEvents("warning");
    const env = new Map([[bad, missing], [other, good]]);
    await reportToGithubActions(RESULT, { env, onEvent });
    assertEquals(events.map(({ message }) => message), [
      `Cannot write to ${missing}, which ${bad} names: no such file or directory; unset ${bad}, or set it to a writable file`,
    ]);
    assertStringIncludes(await Deno.readTextFile(good), SHA256);
    await Deno.remove(good);
  }
});
