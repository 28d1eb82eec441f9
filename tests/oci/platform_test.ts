import { assertEquals } from "@std/assert";
import type { Artifact } from "../../lib/oci/artifact.ts";
import { archOf, fetchForArch, ociArch } from "../../lib/oci/platform.ts";
import { formatReference, parseReference } from "../../lib/oci/reference.ts";
import { failure } from "../support/failure.ts";

const DIGEST = (digit: string) => `sha256:${digit.repeat(64)}` as const;
const INDEX = parseReference("example.org/owner/image:1");

/** An index of manifests, by digit and platform, and what is fetched of it. */
function indexOf(...manifests: [string, string, string?, string?][]) {
  const asked: string[] = [];
  const fetch = (reference: typeof INDEX) => {
    asked.push(formatReference(reference));
    const isIndex = asked.length === 1;
    return Promise.resolve({
      reference,
      digest: DIGEST("0"),
      mediaType: "any",
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

Deno.test("of an index comes the one manifest for the processor, also if there is no other", async () => {
  for (const others of [[], [["b", "arm64"]]] as [string, string][][]) {
    const { asked, fetch } = indexOf(["a", "amd64"], ...others);
    const { manifests } = await fetchForArch(INDEX, "x86_64", fetch);
    assertEquals(manifests, undefined);
    assertEquals(asked.slice(1), [`example.org/owner/image@${DIGEST("a")}`]);
  }
});

Deno.test("an index without a manifest for the processor, or with several, is none", async () => {
  const other = indexOf(["a", "arm64"], ["b", "s390x"]);
  const missing = await failure(
    "payload_missing",
    () => fetchForArch(INDEX, "x86_64", other.fetch),
  );
  assertEquals(missing.message.endsWith("it has arm64, s390x"), true);
  const two = indexOf(["a", "amd64"], ["b", "amd64"]);
  await failure(
    "payload_ambiguous",
    () => fetchForArch(INDEX, "x86_64", two.fetch),
  );
});

Deno.test("an index prefers the image for Linux, or for no named system, to one for another", async () => {
  const chosen = async (...all: [string, string, string?][]) => {
    const { asked, fetch } = indexOf(...all);
    await fetchForArch(INDEX, "x86_64", fetch);
    return asked.slice(1);
  };
  const a = [`example.org/owner/image@${DIGEST("a")}`];
  const windows: [string, string, string] = ["b", "amd64", "windows"];
  assertEquals(await chosen(windows, ["a", "amd64", "linux"]), a);
  assertEquals(await chosen(["a", "amd64"], windows), a);
  // Alone, it is the one.
  assertEquals(await chosen(["a", "amd64", "windows"]), a);
});

Deno.test("an index with several images that fit lists each with its platform", async () => {
  const hint = async (...all: [string, string, string?, string?][]) => {
    const { fetch } = indexOf(...all);
    const error = await failure(
      "payload_ambiguous",
      () => fetchForArch(INDEX, "x86_64", fetch),
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
    `name one of them, as …@DIGEST: ${DIGEST("a")} (linux/amd64/v3), ${
      DIGEST("b")
    } (amd64)`,
  );
  assertEquals(
    await hint(["a", "amd64", "windows"], ["b", "amd64", "darwin"]),
    `name one of them, as …@DIGEST: ${DIGEST("a")} (windows/amd64), ${
      DIGEST("b")
    } (darwin/amd64)`,
  );
  const many = await hint(...Array(30).fill(["a", "amd64"]));
  assertEquals(many!.split("sha256:").length - 1, 20);
});

Deno.test("a processor that no machine here has is not known", () => {
  assertEquals(
    ["amd64", "arm64", "s390x", undefined].map((architecture) =>
      archOf({ architecture })
    ),
    ["x86_64", "aarch64", undefined, undefined],
  );
});

Deno.test("what is no index is taken as it is, and one without manifests as well", async () => {
  for (const manifests of [undefined, []]) {
    const artifact = { reference: INDEX, manifests } as unknown as Artifact;
    let asked = 0;
    const found = await fetchForArch(INDEX, "x86_64", () => {
      asked++;
      return Promise.resolve(artifact);
    });
    assertEquals([found, asked], [artifact, 1]);
  }
});

Deno.test("an image of an index is for the processor that was asked for, unless it says another", async () => {
  const manifests = [{ digest: DIGEST("a"), architecture: "arm64" }];
  for (const [said, expected] of [[undefined, "arm64"], ["amd64", "amd64"]]) {
    const answers = [{ manifests }, { architecture: said, layers: [] }];
    const { architecture } = await fetchForArch(
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

Deno.test("an index that names another one, or several for a processor, says what to name instead", async () => {
  const manifests = [{ digest: DIGEST("a"), architecture: "amd64" }];
  const index = { reference: INDEX, manifests } as unknown as Artifact;
  const nested = await failure(
    "payload_missing",
    () => fetchForArch(INDEX, "x86_64", () => Promise.resolve(index)),
  );
  assertEquals(
    nested.message,
    "example.org/owner/image:1 names another index for amd64",
  );
  const two = indexOf(["a", "amd64"], ["b", "amd64"], ["c", "arm64"]);
  const several = await failure(
    "payload_ambiguous",
    () => fetchForArch(INDEX, "x86_64", two.fetch),
  );
  assertEquals(
    several.message,
    "example.org/owner/image:1 has 2 images for amd64",
  );
  assertEquals([ociArch("x86_64"), ociArch("aarch64")], ["amd64", "arm64"]);
});
