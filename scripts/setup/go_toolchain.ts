/**
 * Brings Go itself, where there is none or too old a one: the module proxy
 * serves its toolchains, as Go's own toolchain switching uses them. The archive
 * is checked by the SHA-256 that `tools/go.json` pins.
 *
 * @module
 */
import pinned from "../../tools/go.json" with { type: "json" };
import { ToolsmithError } from "../../lib/errors.ts";
import { run } from "../../lib/system/process.ts";
import { fetchPinned } from "./release.ts";

const ARCH = { x86_64: "amd64", aarch64: "arm64" }[Deno.build.arch];
const SYSTEM = `${Deno.build.os}-${ARCH}`;

/** The name of the toolchain's directory. */
export const GO_DIR = `go-${pinned.version}-${SYSTEM}`;

/**
 * Downloads the toolchain for this system and unpacks it.
 *
 * Needs `--allow-all`.
 *
 * @param dir An existing directory for it, absolute; the program is `bin/go`.
 * @throws {ToolsmithError} `checksum_mismatch`, or `failed` where there is none
 * for this system or it cannot be had.
 */
export async function unpackGo(dir: string): Promise<void> {
  const sums: Record<string, string> = pinned.sha256;
  const sum = sums[SYSTEM];
  if (!sum) throw new ToolsmithError("failed", `no Go for ${SYSTEM}`);
  const module = `v0.0.1-go${pinned.version}.${SYSTEM}`;
  const url = `${proxy()}/golang.org/toolchain/@v/${module}.zip`;
  await Deno.writeFile(`${dir}/go.zip`, await fetchPinned(url, sum));
  await unzip(dir, "go.zip");
  await Deno.remove(`${dir}/go.zip`);
  const inner = `${dir}/golang.org/toolchain@${module}`;
  for await (const { name } of Deno.readDir(inner)) {
    await Deno.rename(`${inner}/${name}`, `${dir}/${name}`);
  }
  await Deno.remove(`${dir}/golang.org`, { recursive: true });
  // A module's archive holds neither modes nor files of these names.
  for (const source of ["src", "src/cmd"]) {
    await Deno.rename(
      `${dir}/${source}/_go.mod`,
      `${dir}/${source}/go.mod`,
    );
  }
  for (const programs of ["bin", `pkg/tool/${SYSTEM.replace("-", "_")}`]) {
    for await (const { name } of Deno.readDir(`${dir}/${programs}`)) {
      await Deno.chmod(`${dir}/${programs}/${name}`, 0o755);
    }
  }
}

/** The proxy that Go itself would ask first. */
function proxy(): string {
  const first = (Deno.env.get("GOPROXY") ?? "").split(/[,|]/)[0];
  return /^https?:/.test(first)
    ? first.replace(/\/$/, "")
    : "https://proxy.golang.org";
}

async function unzip(dir: string, archive: string): Promise<void> {
  const { code, stderr } = await run("unzip", {
    args: ["-q", archive],
    cwd: dir,
    timeoutMs: 300_000,
  }).catch(() => ({ code: 1, stderr: "install unzip" }));
  if (code === 0) return;
  throw new ToolsmithError("failed", `cannot unpack Go: ${stderr.trim()}`);
}
