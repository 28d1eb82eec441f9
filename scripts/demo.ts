/**
 * Demonstrates publish, hydrate and run with a real registry and a real guest.
 *
 *     deno task demo
 *
 * It works in a temporary directory, which is removed at the end. It needs oras and
 * a registry; without QEMU it skips the guest.
 */
import { runProcess, spawnProcess } from "../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "./deno.ts";
import { setUpTools } from "./setup.ts";
import { installHint } from "./setup/parts.ts";

const IMAGE_BYTES = 64 * 1024 * 1024;
/** QCOW2 table entry flag: the cluster's reference count is one. */
const QCOW2_COPIED_FLAG = 1n << 63n;

const GUEST_PARTS = ["qemuImg", "qemu", "guest"] as const;

const tools = await setUpTools(["oras", "registry", ...GUEST_PARTS]);
if (!tools.oras || !tools.registry) {
  console.error("the demo needs oras and a registry");
  Deno.exit(1);
}
Deno.env.set("TOOLSMITH_ORAS", tools.oras);
Deno.env.set("TOOLSMITH_TEST_REGISTRY", tools.registry);
// Import after the setup: the module looks for the registry when loaded.
const { startRegistry } = await import("../tests/support/registry.ts");
const { dataOffset, makeQcow2: qcow2, writeImage } = await import(
  "../tests/support/qcow2.ts"
);

// Ctrl-C reaches the running step; keep running to clean up.
Deno.addSignalListener("SIGINT", () => {});
const demoDir = await Deno.realPath(
  await Deno.makeTempDir({ prefix: "toolsmith-demo-" }),
);
try {
  await using registry = await startRegistry();
  await runDemo(registry.host.replace("127.0.0.1", "localhost"));
} catch (error) {
  console.error(`\nthe demo stopped: ${(error as Error).message}`);
  Deno.exitCode = 1;
} finally {
  await Deno.remove(demoDir, { recursive: true });
}

async function runDemo(host: string) {
  const reference = `${host}/owner/image:1.0`;
  const type = "application/vnd.fountain.toolsmith.qcow2";
  await Deno.mkdir(`${demoDir}/build/dist`, { recursive: true });
  await Deno.mkdir(`${demoDir}/host/.toolsmith`, { recursive: true });

  printTitle("A QCOW2, and its SHA-256");
  const build = { cwd: `${demoDir}/build` };
  const image = "dist/image.qcow2";
  if (tools.qemuImg) {
    await Deno.writeFile(`${demoDir}/build/raw`, randomBytes());
    await runAndShow(
      ["qemu-img", "convert", "-O", "qcow2", "raw", image],
      build,
    );
  } else {
    await writeImage(`${demoDir}/build/${image}`, randomQcow2());
  }
  const sum = await runAndShow(["sha256sum", image], build);
  const digest = sum.split(" ")[0];

  printTitle("Publish the image to a registry with oras");
  await runAndShow([
    "oras",
    "push",
    reference,
    `${image}:${type}`,
    "--annotation",
    "org.opencontainers.image.title=image.qcow2",
    "--artifact-type",
    type,
  ], build);

  printTitle("Write the manifest of another host");
  const manifest = {
    image: {
      name: "demo",
      tarball: "",
      sha256: "",
      qcow2: `oci://${reference}`,
      qcow2_sha256: digest,
    },
    tools: {},
    operations: [],
  };
  const text = JSON.stringify(manifest, null, 2);
  await Deno.writeTextFile(`${demoDir}/host/.toolsmith/tools.json`, text);
  console.log(text);

  printTitle("Hydrate: download and verify the image");
  const there = { cwd: `${demoDir}/host` };
  await runAndShow(["toolsmith", "hydrate"], there);

  printTitle("Hydrate again: the image is cached and verified");
  await runAndShow(["toolsmith", "hydrate"], there);

  printTitle("Hydrate rejects a wrong digest before it downloads anything");
  manifest.image.qcow2_sha256 = digest.replaceAll(
    /^./g,
    (c) => c === "0" ? "1" : "0",
  );
  await Deno.writeTextFile(
    `${demoDir}/host/.toolsmith/tools.json`,
    JSON.stringify(manifest),
  );
  await runAndShow(["toolsmith", "hydrate"], { ...there, fails: true });
  const missing = GUEST_PARTS.filter((part) => !tools[part]);
  if (missing.length === 0) await runGuestDemo(host);
  console.log("\nThe demo is complete; its files are removed.");
  for (const part of missing) {
    console.log(`Skipped the guest: ${part} is missing: ${installHint(part)}`);
  }
}

async function runGuestDemo(host: string) {
  const { buildGuest } = await import("./guest/build.ts");
  Deno.env.set("TOOLSMITH_QEMU", tools.qemu!);
  const reference = `${host}/owner/guest:1.0`;
  await Deno.mkdir(`${demoDir}/guest/dist`, { recursive: true });
  printTitle("A guest: Debian's kernel, busybox and the QEMU guest agent");
  await Deno.copyFile(await buildGuest(), `${demoDir}/guest/dist/guest.qcow2`);
  const there = { cwd: `${demoDir}/guest` };
  const manifest = ".toolsmith/tools.json";
  await runAndShow([
    ...["toolsmith", "publish", "dist/guest.qcow2", reference],
    ...["--write-manifest", manifest],
  ], there);

  printTitle("Run a command: hydrate, boot and save a snapshot");
  const command = ["uname", "-a"];
  await runAndShow(["toolsmith", "run", "--", ...command], there);

  printTitle("Run again: restore the snapshot instead of booting");
  await runAndShow(["toolsmith", "run", "--", ...command], there);
}

/** Incompressible bytes. */
function randomBytes(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(IMAGE_BYTES);
  for (let at = 0; at < bytes.length; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

/** A QCOW2 of random bytes with the layout that `qemu-img` writes. */
function randomQcow2(): DataView {
  const clusterBits = 16;
  const count = IMAGE_BYTES >> clusterBits;
  const parts = { clusterBits, tables: [[]], size: IMAGE_BYTES };
  const start = dataOffset(parts);
  const entries = Array.from(
    { length: count },
    (_, index) => BigInt(start + (index << clusterBits)) | QCOW2_COPIED_FLAG,
  );
  return qcow2({ ...parts, tables: [entries], data: randomBytes() });
}

function printTitle(text: string) {
  console.log(`\n# ${text}`);
}

/** Prints a command, runs it, and returns its output. */
async function runAndShow(
  command: string[],
  options: { cwd: string; fails?: boolean },
): Promise<string> {
  const shown = command.map((arg) => /[\s"']/.test(arg) ? `'${arg}'` : arg);
  console.log(`$ ${shown.join(" ")}`);
  const [program, args] = await resolveCommand(command);
  let printed = "";
  const decoder = new TextDecoder();
  const child = spawnProcess(program, {
    args,
    cwd: options.cwd,
    stderr: "inherit",
    stdout: (chunk) => {
      printed += decoder.decode(chunk, { stream: true });
      Deno.stdout.writeSync(chunk);
    },
  });
  const { code } = await child.ended;
  if (options.fails) console.log(`(exit status ${code})`);
  if ((code !== 0) !== Boolean(options.fails)) {
    throw new Error(`${command.join(" ")} ended with status ${code}`);
  }
  return printed;
}

async function resolveCommand(
  [name, ...args]: string[],
): Promise<[string, string[]]> {
  switch (name) {
    case "toolsmith": {
      const cli = ["run", "-A", `${PROJECT_ROOT}/cli.ts`, ...args];
      return [Deno.execPath(), await withImportMap(cli)];
    }
    case "oras":
      return [tools.oras!, args];
    case "qemu-img":
      return [tools.qemuImg!, args];
    case "sha256sum": {
      const found = await runProcess("sha256sum", { args: ["--version"] })
        .catch(() => undefined);
      // macOS has shasum instead.
      return found ? ["sha256sum", args] : ["shasum", ["-a", "256", ...args]];
    }
    default:
      throw new Error(`the demo does not know ${name}`);
  }
}
