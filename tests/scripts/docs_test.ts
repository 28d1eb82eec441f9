import { assert, assertEquals } from "@std/assert";
import { basename, dirname, join } from "@std/path";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

const PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  ...[...Deno.readDirSync(`${PROJECT_ROOT}/docs`)]
    .map(({ name }) => `docs/${name}`)
    .filter((path) => path.endsWith(".md")),
];

async function read(path: string): Promise<string> {
  return await Deno.readTextFile(join(PROJECT_ROOT, path));
}

/** The anchors of a page, as GitHub makes them of its headings. */
async function anchorsOf(path: string): Promise<string[]> {
  const text = (await read(path)).replaceAll(/^```[\s\S]*?^```/gm, "");
  return [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    heading.toLowerCase().replaceAll(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-")
  );
}

Deno.test("docs: every relative link leads to a file and a heading that exist", async () => {
  const broken: string[] = [];
  for (const page of PAGES) {
    for (const [, link] of (await read(page)).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(link)) continue;
      const [file, anchor] = link.split("#");
      const target = file === "" ? page : join(dirname(page), file);
      const exists = await Deno.stat(join(PROJECT_ROOT, target)).catch(() =>
        null
      );
      const found = exists && (!anchor || /\.md$/.test(target) &&
          (await anchorsOf(target)).includes(anchor));
      if (!found) broken.push(`${page}: ${link}`);
    }
  }
  assertEquals(broken, []);
});

Deno.test("docs: every page in docs/ is linked from the README or from another page", async () => {
  const texts = new Map<string, string>();
  for (const page of PAGES) texts.set(page, await read(page));
  const alone = PAGES.filter((page) =>
    page.startsWith("docs/") &&
    !PAGES.some((other) =>
      other !== page &&
      new RegExp(`\\]\\((docs/)?${basename(page)}[)#]`).test(texts.get(other)!)
    )
  );
  assertEquals(alone, []);
});

Deno.test("docs/architecture.md names only files of lib/ that exist", async () => {
  const page = await read("docs/architecture.md");
  const paths = [...page.matchAll(/`((?:[a-z_]+\/)*)(\w+\.ts)`/g)];
  assert(paths.length > 40, `${paths.length}`);
  const files: string[] = [];
  const list = (dir: string) => {
    for (
      const { name, isDirectory } of Deno.readDirSync(`${PROJECT_ROOT}/${dir}`)
    ) {
      if (isDirectory) list(`${dir}/${name}`);
      else files.push(`${dir}/${name}`);
    }
  };
  list("lib");
  list("scripts");
  files.push("/cli.ts", "/mod.ts");
  const missing = paths.map(([, dir, name]) => `/${dir}${name}`)
    .filter((path) => !files.some((file) => `/${file}`.endsWith(path)));
  // `_x.ts` stands for any private file.
  assertEquals(missing.filter((path) => path !== "/_x.ts"), []);
});
