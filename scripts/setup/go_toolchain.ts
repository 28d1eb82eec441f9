/**
 * Downloads Go itself from the module proxy, as Go's own toolchain switching does, and
 * checks the SHA-256 in `tools/go.json`.
 */
import pinned from "../../tools/go.json" with { type: "json" };
import { ToolsmithError } from "../../lib/errors.ts";
import { runProcess } from "../../lib/system/process.ts";
import { fetchVerified } from "./release.ts";

const GO_ARCH = { x86_64: "amd64", aarch64: "arm64" }[Deno.build.arch];
const GO_SYSTEM = `${Deno.build.os}-${GO_ARCH}`;

export const GO_DIR = `go-${pinned.version}-${GO_SYSTEM}`;

/**
 * Downloads the toolchain for this system and unpacks it.
 *
 * Needs `--allow-all`.
 *
 * @param dir An existing directory, absolute; the program will be `bin/go` in it.
 * @throws {ToolsmithError} `checksum_mismatch`, or `failed` if there is no toolchain
 * for this system or the download fails.
 */
export async function downloadGoToolchain(dir: string): Promise<void> {
  const sums: Record<string, string> = pinned.sha256;
  const sum = sums[GO_SYSTEM];
  if (!sum) {
    throw new ToolsmithError("failed", `Go has no toolchain for ${GO_SYSTEM}`);
  }
  const module = `v0.0.1-go${pinned.version}.${GO_SYSTEM}`;
  const url = `${goModuleProxy()}/golang.org/toolchain/@v/${module}.zip`;
  await Deno.writeFile(`${dir}/go.zip`, await fetchVerified(url, sum));
  await unzipArchive(dir, "go.zip");
  await Deno.remove(`${dir}/go.zip`);
  const inner = `${dir}/golang.org/toolchain@${module}`;
  for await (const { name } of Deno.readDir(inner)) {
    await Deno.rename(`${inner}/${name}`, `${dir}/${name}`);
  }
  await Deno.remove(`${dir}/golang.org`, { recursive: true });
  // A module archive has no file modes and no files named go.mod.
  for (const source of ["src", "src/cmd"]) {
    await Deno.rename(
      `${dir}/${source}/_go.mod`,
      `${dir}/${source}/go.mod`,
    );
  }
  for (const programs of ["bin", `pkg/tool/${GO_SYSTEM.replace("-", "_")}`]) {
    for await (const { name } of Deno.readDir(`${dir}/${programs}`)) {
      await Deno.chmod(`${dir}/${programs}/${name}`, 0o755);
    }
  }
}

/** The first proxy in GOPROXY, else Go's default. */
function goModuleProxy(): string {
  const first = (Deno.env.get("GOPROXY") ?? "").split(/[,|]/)[0];
  return /^https?:/.test(first)
    ? first.replace(/\/$/, "")
    : "https://proxy.golang.org";
}

async function unzipArchive(dir: string, archive: string): Promise<void> {
  const { code, stderr } = await runProcess("unzip", {
    args: ["-q", archive],
    cwd: dir,
    timeoutMs: 300_000,
  }).catch(() => ({ code: 1, stderr: "install unzip" }));
  if (code === 0) return;
  throw new ToolsmithError("failed", `cannot unpack Go: ${stderr.trim()}`);
}
