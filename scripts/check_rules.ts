/**
 * Checks lib/ against the diagram in docs/architecture.md: which packages exist and
 * which may import which. `_x.ts` is private to its package, one module starts
 * processes, and only the entry point prints and sets the exit status.
 *
 *     deno run --allow-read scripts/check_rules.ts
 */
const PROJECT_ROOT = `${import.meta.dirname}/..`;
const IMPORT_PATTERN = /\b(?:from|import|import\()\s*"(\.[^"]+)"/g;
/** `a --> b & c` in the diagram; `a -- file --> b` allows only that file. */
const ARROW_PATTERN = /^ *(\w+) (?:-- (\w+) )?--> (\w+(?: & \w+)*)$/gm;

/** Public entry points, which no package may import. */
const ENTRY_POINTS = ["../mod.ts", "../cli.ts", "vm.ts", "oci.ts", "cache.ts"];

/** For each package those it may import, and the one file allowed, if limited. */
type AllowedImports = Map<string, Map<string, string | undefined>>;

/**
 * Finds violations of the rules.
 *
 * @param root The project's directory.
 * @returns A line for each violation.
 */
export function findRuleViolations(root: string): string[] {
  const found: string[] = [];
  const arrows = readPackageGraph(`${root}/docs/architecture.md`, found);
  const files = sourceFiles(`${root}/lib`, "");
  const packages = new Set(files.map(packageOf).filter(Boolean));
  for (const pkg of new Set([...arrows.keys(), ...importedPackages(arrows)])) {
    if (!packages.has(pkg)) {
      found.push(`the diagram has ${pkg}: no such package`);
    }
  }
  const imports = new Map<string, string[]>();
  for (const file of ["../mod.ts", "../cli.ts", ...files]) {
    const text = stripComments(Deno.readTextFileSync(`${root}/lib/${file}`));
    const imported = [...text.matchAll(IMPORT_PATTERN)]
      .map(([, specifier]) => resolveImport(file, specifier));
    imports.set(file, imported);
    for (const target of imported) {
      const why = whyImportForbidden(file, target, arrows);
      if (why) found.push(`lib/${file} imports ${target}: ${why}`);
    }
    if (file.startsWith("../")) continue;
    const pkg = packageOf(file);
    if (pkg && !arrows.has(pkg) && !importedPackages(arrows).has(pkg)) {
      found.push(`lib/${file}: its package is not in the diagram`);
    }
    if (file !== "system/process.ts" && text.includes("Deno.Command")) {
      found.push(`lib/${file}: names Deno.Command; use system/process.ts`);
    }
    if (/Deno\.exit(Code)?\b|(?<![\w.])console\./.test(text)) {
      found.push(`lib/${file}: exits or prints; only the entry point may`);
    }
  }
  const packageImports = [...arrows].map(([pkg, to]) =>
    [pkg, [...to.keys()]] as const
  );
  for (const graph of [imports, new Map(packageImports)]) {
    const cycle = findImportCycle(graph);
    if (cycle) found.push(`import cycle: ${cycle.join(" → ")}`);
  }
  return found;
}

/** Returns why a file may not import another, or `undefined`. */
function whyImportForbidden(
  file: string,
  target: string,
  arrows: AllowedImports,
): string | undefined {
  const [from, to] = [packageOf(file), packageOf(target)];
  if (ENTRY_POINTS.includes(target) && target !== "../cli.ts") {
    return "it is a public entry point";
  }
  if (to === "" || from === to) return undefined;
  if (/\/_[^/]*$/.test(target)) return `it is private to ${to}`;
  if (ENTRY_POINTS.includes(file)) return undefined;
  if (from === "") return "a core module imports no package";
  const allowed = arrows.get(from);
  if (!allowed?.has(to)) {
    return `the diagram has no arrow from ${from} to ${to}`;
  }
  const only = allowed.get(to);
  return only === undefined || target === `${to}/${only}.ts`
    ? undefined
    : `${from} may import only ${only}.ts of ${to}`;
}

function readPackageGraph(page: string, found: string[]): AllowedImports {
  const arrows: AllowedImports = new Map();
  for (
    const [, from, only, to] of Deno.readTextFileSync(page).matchAll(
      ARROW_PATTERN,
    )
  ) {
    const allowed = arrows.get(from) ?? new Map<string, string | undefined>();
    for (const pkg of to.split(" & ")) {
      if (allowed.has(pkg)) {
        found.push(
          `the diagram has ${from} → ${pkg} twice`,
        );
      }
      allowed.set(pkg, only);
    }
    arrows.set(from, allowed);
  }
  return arrows;
}

function importedPackages(arrows: AllowedImports): Set<string> {
  return new Set([...arrows.values()].flatMap((to) => [...to.keys()]));
}

/** The package of a file: its directory in lib/, `""` for core modules. */
function packageOf(file: string): string {
  if (file.startsWith("../")) return file;
  return file.includes("/") ? file.slice(0, file.indexOf("/")) : "";
}

function findImportCycle(
  graph: Map<string, readonly string[]>,
): string[] | undefined {
  const done = new Set<string>();
  const visit = (node: string, path: string[]): string[] | undefined => {
    if (path.includes(node)) return [...path.slice(path.indexOf(node)), node];
    if (done.has(node)) return undefined;
    done.add(node);
    for (const next of graph.get(node) ?? []) {
      const cycle = visit(next, [...path, node]);
      if (cycle) return cycle;
    }
  };
  for (const node of graph.keys()) {
    const cycle = visit(node, []);
    if (cycle) return cycle;
  }
}

/** Examples in comments may do what the code must not. */
function stripComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
}

function sourceFiles(dir: string, prefix: string): string[] {
  return [...Deno.readDirSync(dir)].flatMap(({ name, isDirectory }) =>
    isDirectory
      ? sourceFiles(`${dir}/${name}`, `${prefix}${name}/`)
      : name.endsWith(".ts")
      ? [prefix + name]
      : []
  ).sort();
}

/** Resolves `./format.ts` in `cli/render.ts` to `cli/format.ts`. */
function resolveImport(file: string, specifier: string): string {
  const path = new URL(specifier, `file:///lib/${file}`).pathname;
  return path.startsWith("/lib/") ? path.slice("/lib/".length) : `..${path}`;
}

if (import.meta.main) {
  const found = findRuleViolations(PROJECT_ROOT);
  found.forEach((line) => console.error(line));
  Deno.exitCode = found.length > 0 ? 1 : 0;
}
