import { assertEquals, assertMatch } from "@std/assert";
import { crypto as std } from "@std/crypto/crypto";
import {
  compareDigestSpeed,
  probeDigestBehaviour,
} from "../../scripts/npm/behaviour.ts";
import { VERSIONS } from "../../scripts/npm/signatures.ts";
import { crypto as standIn } from "../../scripts/npm/std/crypto.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

const read = async (path: string) =>
  JSON.parse(await Deno.readTextFile(`${PROJECT_ROOT}/${path}`)).imports;

Deno.test("scripts/npm/signatures.ts matches the standard library versions in deno.json", async () => {
  const imports: Record<string, string> = await read("deno.json");
  const std = Object.entries(imports)
    .filter(([name]) => name.startsWith("@std/"));
  const wanted = Object.entries(VERSIONS)
    .map(([name, version]) => [name, `jsr:${name}@^${version}`]);
  assertEquals(std, wanted);
});

Deno.test("scripts/npm/import_map.json replaces every JSR import and nothing else", async () => {
  // `@std/cli/parse-args` is of `@std/cli`, and `deno-std/` of `deno-std`.
  const names = (imports: object) =>
    Object.keys(imports).map((name) =>
      name.split("/").slice(0, name.startsWith("@") ? 2 : 1).join("/")
    );
  assertEquals(
    [...new Set(names(await read("scripts/npm/import_map.json")))].sort(),
    names(await read("deno.json")).sort(),
  );
});

const RELIED_ON = { ahead: 1, isRight: true, passesErrors: true };

Deno.test("@std/crypto and its npm replacement read a stream in the same way", async () => {
  for (const { subtle } of [std, standIn]) {
    assertEquals(await probeDigestBehaviour(subtle.digest), RELIED_ON);
  }
});

Deno.test("probeDigestBehaviour() detects a digest that reads ahead and one that hides errors", async () => {
  const found = await probeDigestBehaviour(async (algorithm, data) => {
    const iterator = (data as AsyncIterable<Uint8Array<ArrayBuffer>>)
      [Symbol.asyncIterator]();
    const first = await Promise.allSettled([iterator.next(), iterator.next()]);
    const chunks = first.flatMap((it) =>
      it.status === "fulfilled" && !it.value.done ? [it.value.value] : []
    );
    return await crypto.subtle.digest(
      algorithm,
      await new Blob(chunks).bytes(),
    );
  });
  assertEquals(found, { ahead: 2, isRight: false, passesErrors: false });
});

Deno.test("compareDigestSpeed() reports a replacement that is too fast or reads streams differently", () => {
  const real = { behaviour: RELIED_ON, speed: 200 };
  const same = compareDigestSpeed({ behaviour: RELIED_ON, speed: 180 }, real);
  assertMatch(
    same,
    /as the real one does, and is 0\.90 × as fast: the same class\.$/,
  );
  const fast = compareDigestSpeed({ behaviour: RELIED_ON, speed: 900 }, real);
  assertMatch(fast, /4\.50 × as fast: NOT the same class\.$/);
  const behaviour = { ...RELIED_ON, ahead: 2 };
  assertMatch(
    compareDigestSpeed({ ...real, behaviour }, real),
    /as \{"ahead":2,/,
  );
});
