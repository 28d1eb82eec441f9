import { assert, assertEquals } from "@std/assert";
import { runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

interface Dependency {
  code?: { specifier: string };
  isDynamic?: boolean;
}

interface GraphModule {
  specifier: string;
  dependencies?: Dependency[];
}

Deno.test("cli.ts loads Node modules and large packages only when they are needed", async () => {
  const { stdout } = await runProcess(Deno.execPath(), {
    args: [
      ...["info", "--json"],
      `--import-map=${PROJECT_ROOT}/scripts/npm/import_map.json`,
      `${PROJECT_ROOT}/cli.ts`,
    ],
  });
  const { roots, modules } = JSON.parse(stdout);
  const reached = (followDynamic: boolean) => {
    const seen = new Set<string>(roots);
    // A set is iterated in the order of additions, later ones included.
    for (const specifier of seen) {
      const module = modules.find((it: GraphModule) =>
        it.specifier === specifier
      );
      for (const { code, isDynamic } of module?.dependencies ?? []) {
        if (code && (followDynamic || !isDynamic)) seen.add(code.specifier);
      }
    }
    return [...seen].filter((it) =>
      /^node:|@sigstore|@modelcontextprotocol|zod/.test(it)
    );
  };
  assertEquals(reached(false), []);
  assert(reached(true).some((it) => it.includes("@sigstore/verify")));
  // A bundler wraps what is imported late, which slows every start.
  const late = modules.flatMap((it: GraphModule) => it.dependencies ?? [])
    .filter((it: Dependency) => it.isDynamic && it.code)
    .map((it: Dependency) => it.code!.specifier);
  const own = late.filter((it: string) => it.includes(`${PROJECT_ROOT}/lib/`));
  assertEquals(
    new Set(own.map((it: string) => it.slice(it.lastIndexOf("/") + 1))),
    new Set(["_sdk.ts", "_sigstore.ts", "_tuf.ts"]),
  );
});
