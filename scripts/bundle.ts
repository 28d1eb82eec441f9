/**
 * Writes `dist/toolsmith.js`: the program in one file, which `deno run` starts
 * without network, import map or cache.
 *
 *     deno task bundle
 */
import { PROJECT_ROOT, runDeno } from "./deno.ts";

export const BUNDLE_PATH = `${PROJECT_ROOT}/dist/toolsmith.js`;

/**
 * Modules that few commands need, and that are larger than all others together. Each
 * is compressed, in a function of its own: V8 does not compile a function that nobody
 * calls, nor loads it from its code cache.
 */
const PACKED_MODULES = {
  "_sdk.ts": "lib/mcp",
  "_sigstore.ts": "lib/signature",
  "_tuf.ts": "lib/signature",
};

/** Imports a packed module once: base64 of gzip. */
const IMPORT_PACKED = `
const imported = {};
const importPacked = (name) => imported[name] ??= unpack(packed[name]());
async function unpack(text) {
  const bytes = new Blob([Uint8Array.fromBase64(text)]).stream();
  const code = bytes.pipeThrough(new DecompressionStream("gzip"));
  const type = "text/javascript";
  const module = new Blob([await new Response(code).text()], { type });
  return await import(URL.createObjectURL(module));
}
`;

/** Packages that are CommonJS call it for Node's modules. */
const REQUIRE = "const require = (name) => process.getBuiltinModule(name);\n";

/**
 * Writes the bundle atomically, as parallel tests write and read it.
 *
 * @returns Whether it succeeded; Deno prints the errors.
 */
export async function writeBundle(): Promise<boolean> {
  await Deno.mkdir(`${PROJECT_ROOT}/dist`, { recursive: true });
  const staging = `${BUNDLE_PATH}.${crypto.randomUUID()}`;
  const outside = Object.keys(PACKED_MODULES)
    .map((name) => `--external=*/${name}`);
  if (!await bundle("cli.ts", staging, ...outside)) return false;
  let program = await Deno.readTextFile(staging);
  const packed: string[] = [];
  for (const [name, dir] of Object.entries(PACKED_MODULES)) {
    // Not for the program itself: Deno's minifier drops `using`, and so releases no lock.
    if (!await bundle(`${dir}/${name}`, staging, "--minify")) return false;
    const code = await pack(REQUIRE + await Deno.readTextFile(staging));
    packed.push(`"${name}": () => "${code}"`);
    program = program.replaceAll(
      `import("./${name}")`,
      `importPacked("${name}")`,
    );
  }
  program = `const packed = {\n${
    packed.join(",\n")
  }\n};${IMPORT_PACKED}${program}`;
  if (/String\.raw`[^`]*[^\0-\x7f`]/.test(program)) {
    throw new Error("String.raw has a character that is not ASCII");
  }
  await Deno.writeTextFile(staging, program.replace(/[^\0-\x7f]/g, toEscape));
  await Deno.rename(staging, BUNDLE_PATH);
  return true;
}

/**
 * Other characters than ASCII would make V8 convert the program at every start. Only
 * `String.raw` would keep the escape sequence.
 */
function toEscape(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

async function bundle(entry: string, output: string, ...flags: string[]) {
  const args = ["--quiet", ...flags, "--output", output];
  const path = `${PROJECT_ROOT}/${entry}`;
  return (await runDeno("bundle", ...args, path)).code === 0;
}

async function pack(code: string): Promise<string> {
  const gzip = new CompressionStream("gzip");
  const packed = new Blob([code]).stream().pipeThrough(gzip);
  return (await new Response(packed).bytes()).toBase64();
}

if (import.meta.main) {
  if (await writeBundle()) console.error(`wrote ${BUNDLE_PATH}`);
  else Deno.exitCode = 1;
}
