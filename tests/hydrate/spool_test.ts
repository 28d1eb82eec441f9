import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { hashClone, spool } from "../../lib/hydrate/_spool.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { writeSparse } from "../../lib/system/sparse.ts";
import { writeAll } from "../../lib/system/streams.ts";
import { temporaryDir } from "../support/directory.ts";
import { replace } from "../support/replace.ts";
import { type Fetching, fetching } from "../support/fetching.ts";

const MIB = 1024 * 1024;

async function digestOf(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Runs a test with the context of an image. */
function test(
  name: string,
  body: (bench: Fetching & { dir: string }) => Promise<void>,
) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const image = {
      sha256: "0".repeat(64),
      source: {
        kind: "file" as const,
        path: "/images/a.qcow2",
      },
    };
    await body({ ...fetching(image, dir.path), dir: dir.path });
  });
}

async function* pieces(bytes: Uint8Array<ArrayBuffer>, size: number) {
  for (let at = 0; at < bytes.length; at += size) {
    yield bytes.slice(at, at + size);
  }
}

test("what is spooled is synced while it comes, and a disk that fails then says so", async ({ context }) => {
  using _system = replace(Deno.FsFile.prototype, {
    syncData: () => Promise.reject(new Error("broken disk")),
  });
  const bytes = new Uint8Array(5 * MIB);
  const file = { name: "a", total: bytes.length, write: writeAll };
  const spooled = () => spool(context, pieces(bytes, MIB), file);
  await assertRejects(spooled, Error, "broken disk");
});

test("chunks become a file, whose digest and fingerprint are returned", async ({ dir, context, told }) => {
  const bytes = crypto.getRandomValues(new Uint8Array(50_000));
  for (const [name, total] of [["a", 50_000], ["b", null]] as const) {
    const file = { name, total, write: writeAll };
    const path = join(dir, name);
    assertEquals(await spool(context, pieces(bytes, 7000), file), {
      path,
      name,
      bytes: 50_000,
      actual: await digestOf(bytes),
      hashed: (await fingerprint(path))!,
    });
    assertEquals(await Deno.readFile(path), bytes);
  }
  const source = "/images/a.qcow2";
  const usual = { image: "demo", source, resumed: 0, connections: 1 };
  assertEquals(told("download_start"), [
    { ...usual, bytes: 50_000 },
    { ...usual, bytes: null },
  ]);
  assertEquals(told("download_end").map((it) => it.bytes), [50_000, 50_000]);
});

test("a file that ends in a hole is as long as what came", async ({ dir, context }) => {
  const bytes = new Uint8Array(3 * MIB);
  bytes.fill(7, MIB, MIB + 100);
  const file = { name: "a", total: bytes.length, write: writeSparse };
  const fetched = await spool(context, pieces(bytes, MIB), file);
  assertEquals(fetched.actual, await digestOf(bytes));
  const { size, blocks } = await Deno.stat(join(dir, "a"));
  assertEquals(size, bytes.length);
  assert(blocks === null || blocks * 512 < MIB, `${blocks} blocks`);
});

test("how far a file has come is told while it comes", async ({ context, told }) => {
  const slow = async function* () {
    for (const _ of [1, 2, 3]) {
      // Ten times a second at most.
      await new Promise((done) => setTimeout(done, 110));
      yield new Uint8Array(1000);
    }
  };
  await spool(context, slow(), { name: "a", total: 3000, write: writeAll });
  assertEquals(
    told("download_progress"),
    [1000, 2000, 3000].map((bytes) => ({
      image: "demo",
      bytes,
      total: 3000,
    })),
  );
});

test("a file that is there already is not written over", async ({ dir, context }) => {
  await Deno.writeTextFile(join(dir, "a"), "there");
  const file = { name: "a", total: 9, write: writeAll };
  const write = () => spool(context, pieces(new Uint8Array(9), 9), file);
  await assertRejects(write, Deno.errors.AlreadyExists);
  assertEquals(await Deno.readTextFile(join(dir, "a")), "there");
});

test("a copy that shares its blocks is read for its digest", async ({ dir, context, told }) => {
  const bytes = crypto.getRandomValues(new Uint8Array(50_000));
  const path = join(dir, "clone.qcow2");
  await Deno.writeFile(path, bytes);
  assertEquals(await hashClone(context, path), {
    path,
    name: "clone.qcow2",
    bytes: 50_000,
    actual: await digestOf(bytes),
    hashed: (await fingerprint(path))!,
  });
  assertEquals(told("download_start").map((it) => it.bytes), [50_000]);
  assertEquals(told("download_end").map((it) => it.bytes), [50_000]);
  context.registry.signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(() => hashClone(context, path), Error, "enough");
});
