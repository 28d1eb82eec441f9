/**
 * The named sets of permissions in `deno.json`. A variable that may not be read
 * counts as not set, so nothing else would notice one that is missing.
 */
import { assertEquals } from "@std/assert";
import { ROOT } from "../scripts/deno.ts";

/** Read to publish, which has no set. */
const PUBLISHING = ["GITHUB_ACTIONS", "GITHUB_TOKEN", "SOURCE_DATE_EPOCH"];

Deno.test("-P=run may read the variables, and run the programs, that lib/ names", async () => {
  const { permissions } = JSON.parse(
    await Deno.readTextFile(`${ROOT}/deno.json`),
  );
  const { env, run } = permissions.run as Record<string, string[]>;
  const text = (await sources(`${ROOT}/lib`)).join("\n");
  const variables = [...text.matchAll(/\.get\(([^()]*"[A-Z_]+"[^()]*)\)/g)]
    .flatMap(([, names]) => [...names.matchAll(/"([A-Z_]{2,})"/g)])
    .map(([, name]) => name);
  const proxies = [...text.matchAll(/"((?:[A-Z]+_PROXY)|(?:[a-z]+_proxy))"/g)]
    .map(([, name]) => name);
  const read = [...variables, ...proxies];
  assertEquals(env.toSorted(), unique(read, PUBLISHING));
  const programs = [...text.matchAll(/\b(?:run|spawn)\("([\w-]+)"/g)]
    .map(([, name]) => name);
  // `ps` only ends by force what hangs, where there is no /proc.
  const named = unique([...programs, "oras"], ["ps"]);
  const emulators = ["x86_64", "aarch64"].map((arch) => `qemu-system-${arch}`);
  assertEquals(run.toSorted(), unique([...named, ...emulators], []));
});

function unique(words: string[], without: string[]): string[] {
  return [...new Set(words)].filter((it) => !without.includes(it)).sort();
}

async function sources(dir: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(dir)) {
    const path = `${dir}/${name}`;
    if (isDirectory) found.push(...await sources(path));
    else if (name.endsWith(".ts")) found.push(await Deno.readTextFile(path));
  }
  return found;
}
