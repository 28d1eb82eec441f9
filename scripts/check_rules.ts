/**
 * Holds lib/ to the picture of docs/architecture.md: which rooms there are and
 * which may import which. A file named `_x.ts` belongs to its room alone, one
 * file starts processes, and only the entry point prints and sets the exit
 * status.
 *
 *     deno run --allow-read scripts/check_rules.ts
 *
 * @module
 */
const ROOT = `${import.meta.dirname}/..`;
const IMPORT = /\b(?:from|import|import\()\s*"(\.[^"]+)"/g;
/** `a --> b & c` in the picture; `a -- file --> b` allows that file alone. */
const ARROWS = /^ *(\w+) (?:-- (\w+) )?--> (\w+(?: & \w+)*)$/gm;

/** Which files of another room a room may import. */
type Arrows = Map<string, Map<string, string | undefined>>;

/**
 * Finds what breaks the rules.
 *
 * @param root The project.
 * @returns A line for each breach.
 */
export function breaches(root: string): string[] {
  const found: string[] = [];
  const arrows = readPicture(`${root}/docs/architecture.md`, found);
  const files = sources(`${root}/lib`, "");
  const rooms = new Set(files.map(roomOf).filter(Boolean));
  for (const room of new Set([...arrows.keys(), ...targets(arrows)])) {
    if (!rooms.has(room)) found.push(`the picture has ${room}: no such room`);
  }
  const imports = new Map<string, string[]>();
  for (const file of ["../mod.ts", "../cli.ts", ...files]) {
    const text = withoutComments(Deno.readTextFileSync(`${root}/lib/${file}`));
    const imported = [...text.matchAll(IMPORT)]
      .map(([, specifier]) => resolveFrom(file, specifier));
    imports.set(file, imported);
    for (const target of imported) {
      const why = forbidden(file, target, arrows);
      if (why) found.push(`lib/${file} imports ${target}: ${why}`);
    }
    if (file.startsWith("../")) continue;
    const room = roomOf(file);
    if (room && !arrows.has(room) && !targets(arrows).has(room)) {
      found.push(`lib/${file}: the picture has no room for it`);
    }
    if (file !== "system/process.ts" && text.includes("Deno.Command")) {
      found.push(`lib/${file}: names Deno.Command; use system/process.ts`);
    }
    if (/Deno\.exit(Code)?\b|(?<![\w.])console\./.test(text)) {
      found.push(`lib/${file}: exits or prints; that is for the entry point`);
    }
  }
  const roomImports = [...arrows].map(([room, to]) =>
    [room, [...to.keys()]] as const
  );
  for (const graph of [imports, new Map(roomImports)]) {
    const circle = findCircle(graph);
    if (circle) found.push(`imports in a circle: ${circle.join(" → ")}`);
  }
  return found;
}

/** Says why a file may not import another; `undefined` if it may. */
function forbidden(
  file: string,
  target: string,
  arrows: Arrows,
): string | undefined {
  const [from, to] = [roomOf(file), roomOf(target)];
  if (to === "" || from === to) return undefined;
  if (/\/_[^/]*$/.test(target)) return `it belongs to ${to} alone`;
  // The entry points stand above all rooms.
  if (file.startsWith("../")) return undefined;
  if (from === "") return "what all rooms stand on imports none";
  const allowed = arrows.get(from);
  if (!allowed?.has(to)) return `no arrow leads from ${from} to ${to}`;
  const only = allowed.get(to);
  return only === undefined || target === `${to}/${only}.ts`
    ? undefined
    : `${from} may import ${only}.ts alone of ${to}`;
}

function readPicture(page: string, found: string[]): Arrows {
  const arrows: Arrows = new Map();
  for (
    const [, from, only, to] of Deno.readTextFileSync(page).matchAll(ARROWS)
  ) {
    const known = arrows.get(from) ?? new Map<string, string | undefined>();
    for (const room of to.split(" & ")) {
      if (known.has(room)) {
        found.push(
          `the picture has ${from} → ${room} twice`,
        );
      }
      known.set(room, only);
    }
    arrows.set(from, known);
  }
  return arrows;
}

function targets(arrows: Arrows): Set<string> {
  return new Set([...arrows.values()].flatMap((to) => [...to.keys()]));
}

/** The directory in lib/ that a file lies in; `""` for the ground. */
function roomOf(file: string): string {
  if (file.startsWith("../")) return file;
  return file.includes("/") ? file.slice(0, file.indexOf("/")) : "";
}

/** Follows imports until one leads back. */
function findCircle(
  graph: Map<string, readonly string[]>,
): string[] | undefined {
  const done = new Set<string>();
  const visit = (node: string, path: string[]): string[] | undefined => {
    if (path.includes(node)) return [...path.slice(path.indexOf(node)), node];
    if (done.has(node)) return undefined;
    done.add(node);
    for (const next of graph.get(node) ?? []) {
      const circle = visit(next, [...path, node]);
      if (circle) return circle;
    }
  };
  for (const node of graph.keys()) {
    const circle = visit(node, []);
    if (circle) return circle;
  }
}

/** Comments hold examples, which may do what the code must not. */
function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
}

function sources(dir: string, prefix: string): string[] {
  return [...Deno.readDirSync(dir)].flatMap(({ name, isDirectory }) =>
    isDirectory
      ? sources(`${dir}/${name}`, `${prefix}${name}/`)
      : name.endsWith(".ts")
      ? [prefix + name]
      : []
  ).sort();
}

/** `./format.ts` in `cli/render.ts` is `cli/format.ts`. */
function resolveFrom(file: string, specifier: string): string {
  const path = new URL(specifier, `file:///lib/${file}`).pathname;
  return path.startsWith("/lib/") ? path.slice("/lib/".length) : `..${path}`;
}

if (import.meta.main) {
  const found = breaches(ROOT);
  found.forEach((line) => console.error(line));
  Deno.exitCode = found.length > 0 ? 1 : 0;
}
