/**
 * The architecture of an artifact, and the selection of an index's manifest for an
 * architecture.
 *
 * Format: OCI Image Specification 1.1, "Image Index": `platform.architecture` is a
 * GOARCH, `platform.os` a GOOS.
 */
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import type { Artifact } from "./artifact.ts";
import { formatReference, type OciReference } from "./reference.ts";

/** The annotation of a manifest that holds the architecture of its image. */
export const ARCHITECTURE_ANNOTATION = "vnd.fountain.toolsmith.architecture";

const MAX_LISTED_DIGESTS = 20;

export const OCI_ARCH_NAMES: Record<ImageArch, string> = {
  x86_64: "amd64",
  aarch64: "arm64",
};

/** Parses OCI's name of an architecture; `undefined` if it is not supported. */
export function parseOciArch(name: string | undefined): ImageArch | undefined {
  const archs: ImageArch[] = ["x86_64", "aarch64"];
  return archs.find((arch) => OCI_ARCH_NAMES[arch] === name);
}

/**
 * Fetches an artifact; if it is an index, fetches its manifest for an architecture.
 * Prefers a manifest for Linux, or without an OS, to one for another OS.
 */
export async function fetchArtifactForArch(
  reference: OciReference,
  arch: ImageArch,
  fetch: (reference: OciReference) => Promise<Artifact>,
): Promise<Artifact> {
  const artifact = await fetch(reference);
  const { manifests = [] } = artifact;
  if (manifests.length === 0) return artifact;
  const wanted = OCI_ARCH_NAMES[arch];
  const all = manifests.filter((it) => it.architecture === wanted);
  const first = all.filter(({ os = "linux" }) => os === "linux");
  const fitting = first.length > 0 ? first : all;
  const name = formatReference(artifact.reference);
  if (fitting.length === 0) {
    const others = [...new Set(manifests.map((it) => it.architecture))];
    const hint =
      "pass --arch ARCH for another architecture, or add a manifest's digest to the reference, …@sha256:…";
    const message = `${name} has no image for ${wanted}: the index has ${
      others.join(", ")
    }`;
    throw new ToolsmithError("payload_missing", message, { hint });
  }
  if (fitting.length > 1) {
    const listed = fitting.slice(0, MAX_LISTED_DIGESTS).map((it) => {
      const platform = [it.os, it.architecture, it.variant].filter(Boolean);
      return `${it.digest} (${platform.join("/")})`;
    }).join(", ");
    const message =
      `${name} has ${fitting.length} images for ${wanted}, expected one`;
    const hint =
      `add one of these digests to the reference, as …@DIGEST: ${listed}`;
    throw new ToolsmithError("payload_ambiguous", message, { hint });
  }
  const { digest } = fitting[0];
  const found = await fetch({ ...artifact.reference, digest });
  if (found.manifests) {
    const message = `${name} contains a nested index for ${wanted}`;
    const hint =
      "add the digest of the image's manifest to the reference, …@sha256:…";
    throw new ToolsmithError("payload_missing", message, { hint });
  }
  return { ...found, architecture: found.architecture ?? wanted };
}
