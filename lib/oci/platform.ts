/**
 * For which processor an artifact is, and which manifest of an index is for this
 * host's.
 *
 * Format: OCI Image Specification 1.1, "Image Index": `platform.architecture`
 * holds names of Go's processors, `platform.os` of Go's systems.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import type { Artifact, PlatformManifest } from "./artifact.ts";
import { formatReference, type OciReference } from "./reference.ts";

/** The annotation of a manifest that holds the processor of its image. */
export const ARCHITECTURE = "vnd.fountain.toolsmith.architecture";

/** More digests than a person reads. */
const MAX_LISTED = 20;

const NAMES: Record<ImageArch, string> = { x86_64: "amd64", aarch64: "arm64" };

/**
 * The name that OCI has for a processor.
 *
 * @param arch The processor.
 * @returns Such as `amd64`.
 */
export function ociArch(arch: ImageArch): string {
  return NAMES[arch];
}

/**
 * The processor that an artifact says its image is for.
 *
 * @param artifact The artifact.
 * @returns The processor; `undefined` where it does not say, or names another.
 */
export function archOf(
  { architecture }: Pick<Artifact, "architecture">,
): ImageArch | undefined {
  const archs: ImageArch[] = ["x86_64", "aarch64"];
  return archs.find((arch) => NAMES[arch] === architecture);
}

/**
 * Fetches an artifact; of an index, the one manifest in it that is for a
 * processor. A manifest for Linux, or for no named system, comes before one for
 * another system.
 *
 * @param reference What is asked for.
 * @param arch The processor.
 * @param fetch Asks for one manifest.
 * @returns The artifact, which is no index.
 * @throws {ToolsmithError} `payload_missing` when an index has none for this
 * processor, or names an index again; `payload_ambiguous` when it has several.
 */
export async function fetchForArch(
  reference: OciReference,
  arch: ImageArch,
  fetch: (reference: OciReference) => Promise<Artifact>,
): Promise<Artifact> {
  const artifact = await fetch(reference);
  if (!artifact.manifests || artifact.manifests.length === 0) return artifact;
  const wanted = NAMES[arch];
  const { manifests } = artifact;
  const all = manifests.filter((it) => it.architecture === wanted);
  const first = all.filter(({ os = "linux" }) => os === "linux");
  const fitting = first.length > 0 ? first : all;
  const name = formatReference(artifact.reference);
  if (fitting.length === 0) {
    const others = [...new Set(manifests.map((it) => it.architecture))];
    throw new ToolsmithError(
      "payload_missing",
      `${name} has no image for ${wanted}: it has ${others.join(", ")}`,
      {
        hint:
          "name the manifest inside it by its digest, …@sha256:…, or the processor of another: --arch ARCH",
      },
    );
  }
  if (fitting.length > 1) {
    throw new ToolsmithError(
      "payload_ambiguous",
      `${name} has ${fitting.length} images for ${wanted}`,
      {
        hint: `name one of them, as …@DIGEST: ${
          fitting.slice(0, MAX_LISTED).map(describe).join(", ")
        }`,
      },
    );
  }
  const { digest } = fitting[0];
  const { registry, repository } = artifact.reference;
  const found = await fetch({ kind: "oci", registry, repository, digest });
  if (found.manifests) {
    throw new ToolsmithError(
      "payload_missing",
      `${name} names another index for ${wanted}`,
      { hint: "name the image's manifest by its digest, …@sha256:…" },
    );
  }
  return { ...found, architecture: found.architecture ?? wanted };
}

/** Such as `sha256:… (linux/arm64/v8)`. */
function describe({ digest, os, architecture, variant }: PlatformManifest) {
  const platform = [os, architecture, variant].filter(Boolean).join("/");
  return `${digest} (${platform})`;
}
