/**
 * Downloads oras from its official release and checks the SHA-256 in
 * `tools/oras/release.json`.
 */
import release from "../../tools/oras/release.json" with { type: "json" };
import { ToolsmithError } from "../../lib/errors.ts";
import { runProcess } from "../../lib/system/process.ts";

/**
 * Downloads the release for this system and unpacks the program.
 *
 * Needs `--allow-net`, `--allow-run=tar`, `--allow-write`.
 *
 * @param dir An existing directory for the program, absolute.
 * @throws {ToolsmithError} `checksum_mismatch`, or `failed` if there is no release for
 * this system or the download fails.
 */
export async function downloadOrasRelease(dir: string): Promise<void> {
  const system = `${Deno.build.os}-${Deno.build.arch}`;
  const archives: Record<string, { name: string; sha256: string }> =
    release.archives;
  const archive = archives[system];
  if (!archive) {
    throw new ToolsmithError("failed", `oras has no release for ${system}`);
  }
  const bytes = await fetchVerified(
    release.base + archive.name,
    archive.sha256,
  );
  const program = Deno.build.os === "windows" ? "oras.exe" : "oras";
  await Deno.writeFile(`${dir}/${archive.name}`, bytes);
  // Windows' tar reads zip archives too.
  const unpacked = await runProcess("tar", {
    cwd: dir,
    args: ["-xf", archive.name, program],
    timeoutMs: 60_000,
  });
  await Deno.remove(`${dir}/${archive.name}`);
  if (unpacked.code !== 0) {
    throw new ToolsmithError("failed", `tar failed: ${unpacked.stderr.trim()}`);
  }
}

/**
 * Downloads a small file and checks its SHA-256.
 *
 * Needs `--allow-net`.
 *
 * @param sha256 The expected digest, in hexadecimal.
 * @throws {ToolsmithError} `checksum_mismatch`, or `failed` for an HTTP error.
 */
export async function fetchVerified(
  url: string,
  sha256: string,
): Promise<Uint8Array> {
  const response = await fetch(url, { signal: AbortSignal.timeout(300_000) });
  if (!response.ok) {
    await response.body?.cancel();
    throw new ToolsmithError("failed", `${url} answers ${response.status}`);
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  const actual = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))
    .toHex();
  if (actual !== sha256) {
    throw new ToolsmithError(
      "checksum_mismatch",
      `${url} does not match its pinned SHA-256: expected ${sha256}, got ${actual}`,
    );
  }
  return bytes;
}
