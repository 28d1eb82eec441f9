/**
 * Brings oras from its official release, checked by the SHA-256 that
 * `tools/oras/release.json` pins for each system.
 *
 * @module
 */
import release from "../../tools/oras/release.json" with { type: "json" };
import { ToolsmithError } from "../../lib/errors.ts";
import { run } from "../../lib/system/process.ts";

/**
 * Downloads the release for this system and unpacks its program.
 *
 * Needs `--allow-net`, `--allow-run=tar`, `--allow-write`.
 *
 * @param dir An existing directory for the program, absolute.
 * @throws {ToolsmithError} `checksum_mismatch`, or `failed` where there is no
 * release for this system or it cannot be had.
 */
export async function unpackOrasRelease(dir: string): Promise<void> {
  const system = `${Deno.build.os}-${Deno.build.arch}`;
  const archives: Record<string, { name: string; sha256: string }> =
    release.archives;
  const archive = archives[system];
  if (!archive) {
    throw new ToolsmithError("failed", `oras has no release for ${system}`);
  }
  const bytes = await fetchPinned(release.base + archive.name, archive.sha256);
  const program = Deno.build.os === "windows" ? "oras.exe" : "oras";
  await Deno.writeFile(`${dir}/${archive.name}`, bytes);
  // The tar of Windows reads zip archives as well.
  const unpacked = await run("tar", {
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
 * Downloads a file of a few megabytes whose SHA-256 is known.
 *
 * Needs `--allow-net`.
 *
 * @param url Where it is.
 * @param sha256 What it must hash to, in hexadecimal.
 * @returns The file's bytes.
 * @throws {ToolsmithError} `checksum_mismatch`, or `failed` where the server
 * does not give it.
 */
export async function fetchPinned(
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
      `${url} is not what was pinned: expected ${sha256}, got ${actual}`,
    );
  }
  return bytes;
}
