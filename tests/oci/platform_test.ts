import { assertEquals } from "@std/assert";
import type { Artifact } from "../../lib/oci/artifact.ts";
import { fetchArtifactForArch, parseOciArch } from "../../lib/oci/platform.ts";
import { formatReference, parseReference } from "../../lib/oci/reference.ts";
import { expectFailure } from "../support/expect_failure.ts";

const DIGEST = (digit: string) => `sha256:${digit.repeat(64)}` as const;
const INDEX = parseReference("example.org/owner/image:1");

/** Creates an index from digest digits and platforms, and records the fetches. */
function indexOf(...manifests: [string, string, string?, string?][]) {
  const asked: string[] = [];
  const fetch = (reference: typeof INDEX) => {
    asked.push(formatReference(reference));
    const isIndex = asked.length === 1;
    return Promise.resolve({
      reference,
      digest: DIGEST("0"),
      layers: [],
      manifests: isIndex
        ? manifests.map(([digit, architecture, os, variant]) => ({
          digest: DIGEST(digit),
          architecture,
          os,
          variant,
        }))
        : undefined,
    } as unknown as Artifact);
  };
  return { asked, fetch };
}

Deno.test("fetchArtifactForArch() fetches the index's only manifest for the architecture", async () => {
  for (const others of [[], [["b", "arm64"]]] as [string, string][][]) {
    const { asked, fetch } = indexOf(["a", "amd64"], ...others);
    const { manifests } = await fetchArtifactForArch(INDEX, "x86_64", fetch);
    assertEquals(manifests, undefined);
    assertEquals(asked.slice(1), [`example.org/owner/image@${DIGEST("a")}`]);
  }
});

Deno.test("fetchArtifactForArch() rejects an index with no or several manifests for the architecture", async () => {
  const other = indexOf(["a", "arm64"], ["b", "s390x"]);
  const missing = await expectFailure(
    "payload_missing",
    () => fetchArtifactForArch(INDEX, "x86_64", other.fetch),
  );
  assertEquals(missing.message.endsWith("the index has arm64, s390x"), true);
  const two = indexOf(["a", "amd64"], ["b", "amd64"]);
  await expectFailure(
    "payload_ambiguous",
    () => fetchArtifactForArch(INDEX, "x86_64", two.fetch),
  );
});

Deno.test("fetchArtifactForArch() prefers a manifest for Linux or without an OS to one for another OS", async () => {
  const chosen = async (...all: [string, string, string?][]) => {
    const { asked, fetch } = indexOf(...all);
    await fetchArtifactForArch(INDEX, "x86_64", fetch);
    return asked.slice(1);
  };
  const a = [`example.org/owner/image@${DIGEST("a")}`];
  const windows: [string, string, string] = ["b", "amd64", "windows"];
  assertEquals(await chosen(windows, ["a", "amd64", "linux"]), a);
  assertEquals(await chosen(["a", "amd64"], windows), a);
  // The only match is chosen, whatever its OS.
  assertEquals(await chosen(["a", "amd64", "windows"]), a);
});

Deno.test("fetchArtifactForArch() lists each matching manifest with its platform when several match", async () => {
  const hint = async (...all: [string, string, string?, string?][]) => {
    const { fetch } = indexOf(...all);
    const error = await expectFailure(
      "payload_ambiguous",
      () => fetchArtifactForArch(INDEX, "x86_64", fetch),
    );
    return error.hint;
  };
  assertEquals(
    await hint(
      ["a", "amd64", "linux", "v3"],
      ["b", "amd64"],
      ["c", "amd64", "windows"],
      ["d", "arm64", "linux"],
    ),
    `add one of these digests to the reference, as …@DIGEST: ${
      DIGEST("a")
    } (linux/amd64/v3), ${DIGEST("b")} (amd64)`,
  );
  assertEquals(
    await hint(["a", "amd64", "windows"], ["b", "amd64", "darwin"]),
    `add one of these digests to the reference, as …@DIGEST: ${
      DIGEST("a")
    } (windows/amd64), ${DIGEST("b")} (darwin/amd64)`,
  );
  const many = await hint(...Array(30).fill(["a", "amd64"]));
  assertEquals(many!.split("sha256:").length - 1, 20);
});

Deno.test("parseOciArch() returns undefined for an unknown architecture", () => {
  assertEquals(
    ["amd64", "arm64", "s390x", undefined].map(parseOciArch),
    ["x86_64", "aarch64", undefined, undefined],
  );
});

Deno.test("fetchArtifactForArch() returns an artifact that is no index or has no manifests unchanged", async () => {
  for (const manifests of [undefined, []]) {
    const artifact = { reference: INDEX, manifests } as unknown as Artifact;
    let asked = 0;
    const found = await fetchArtifactForArch(INDEX, "x86_64", () => {
      asked++;
      return Promise.resolve(artifact);
    });
    assertEquals([found, asked], [artifact, 1]);
  }
});

Deno.test("fetchArtifactForArch() sets the requested architecture unless the manifest declares one", async () => {
  const manifests = [{ digest: DIGEST("a"), architecture: "arm64" }];
  for (const [said, expected] of [[undefined, "arm64"], ["amd64", "amd64"]]) {
    const answers = [{ manifests }, { architecture: said, layers: [] }];
    const { architecture } = await fetchArtifactForArch(
      INDEX,
      "aarch64",
      () =>
        Promise.resolve(
          { reference: INDEX, ...answers.shift() } as unknown as Artifact,
        ),
    );
    assertEquals(architecture, expected);
  }
});

Deno.test("fetchArtifactForArch() names the index and architecture for a nested index or several matches", async () => {
  const manifests = [{ digest: DIGEST("a"), architecture: "amd64" }];
  const index = { reference: INDEX, manifests } as unknown as Artifact;
  const nested = await expectFailure(
    "payload_missing",
    () => fetchArtifactForArch(INDEX, "x86_64", () => Promise.resolve(index)),
  );
  assertEquals(
    nested.message,
    "example.org/owner/image:1 contains a nested index for amd64",
  );
  const two = indexOf(["a", "amd64"], ["b", "amd64"], ["c", "arm64"]);
  const several = await expectFailure(
    "payload_ambiguous",
    () => fetchArtifactForArch(INDEX, "x86_64", two.fetch),
  );
  assertEquals(
    several.message,
    "example.org/owner/image:1 has 2 images for amd64, expected one",
  );
});
