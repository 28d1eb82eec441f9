import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  findBootLoader,
  findBootLoaderOnDisk,
} from "../../lib/image/boot_loader.ts";
import { openQcow2Disk } from "../../lib/image/_qcow2_disk.ts";
import { runProcess } from "../../lib/system/process.ts";
import {
  copyFileInto,
  makeSparseFile,
  type Partition,
  partitionDisk,
} from "../../scripts/guest/_disk.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";

const MIB = 2 ** 20;
/** Options of `qemu-img convert`: the QCOW2 variants. */
const FORMS: string[][] = [
  [],
  ["-c"],
  ["-c", "-o", "compression_type=zstd"],
  ["-o", "extended_l2=on"],
  ["-o", "cluster_size=512"],
  ["-c", "-o", "cluster_size=2M"],
  ["-o", "compat=0.10"],
];
const PROGRAM = new Uint8Array(440).fill(0x90);
const GRUB = new TextEncoder().encode("\x90\x90GRUB \0Geom\0");

/** mkfs is not on every user's PATH. */
const env = { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin` };

async function must(program: string, ...args: string[]) {
  const { code, stderr } = await runProcess(program, { args, env });
  assertEquals(code, 0, stderr);
}

/** Runs one test in a directory of its own. */
function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ...requires("qemuImg", "guest"),
    async fn() {
      await using dir = await temporaryDir();
      await body(dir.path);
    },
  });
}

/** A disk that a test describes. */
interface Disk {
  label?: "dos" | "gpt";
  partitions?: Partition[];
  /** Boot loaders of the first partition, which is a FAT file system. */
  loaders?: string[];
  /** 12, 16 or 32. @default {16} */
  fat?: number;
  /** Boot code in the first sector. */
  program?: Uint8Array;
  /** Options of `qemu-img convert`. */
  form?: string[];
}

const ESP: Partition = { type: "uefi", size: 40 };

/** Minimum size of each FAT type, in MiB, with small clusters. */
const FAT_MIB: Record<number, number> = { 12: 4, 16: 10, 32: 40 };

async function makeDisk(dir: string, disk: Disk): Promise<string> {
  return await convert(
    await makeRaw(dir, disk),
    join(dir, "disk.qcow2"),
    disk.form,
  );
}

async function makeRaw(dir: string, disk: Disk): Promise<string> {
  const { label, partitions = [ESP], loaders, fat = 16, program } = disk;
  const raw = await makeSparseFile(join(dir, "disk.raw"), 64);
  if (label) await partitionDisk(raw, label, partitions);
  if (program) await copyFileInto(raw, 0, program);
  if (loaders) {
    const esp = await makeSparseFile(join(dir, "esp"), FAT_MIB[fat]);
    await must("mkfs.vfat", "-F", `${fat}`, "-s", fat === 32 ? "1" : "4", esp);
    await must("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/EFI/debian");
    for (const name of loaders) {
      const file = join(dir, "loader");
      await Deno.writeTextFile(file, name);
      await must("mcopy", "-o", "-i", esp, file, `::/EFI/BOOT/${name}`);
    }
    await copyFileInto(raw, MIB, await Deno.readFile(esp));
  }
  return raw;
}

async function convert(raw: string, path: string, form: string[] = []) {
  await must("qemu-img", "convert", "-O", "qcow2", ...form, raw, path);
  return path;
}

const BIOS = { arch: "x86_64", firmware: "bios" };
const UEFI = { arch: "x86_64", firmware: "uefi" };
const ARM = { arch: "aarch64", firmware: "uefi" };

test("findBootLoader() detects the boot loader in the first sector and the EFI system partition", async (dir) => {
  const x64 = ["BOOTX64.EFI"];
  const aa64 = ["BOOTAA64.EFI"];
  const cases: [string, Disk, unknown][] = [
    ["nothing at all", {}, {}],
    ["an empty table", { label: "dos", partitions: [{ type: "83" }] }, {}],
    [
      "a program and an active partition",
      {
        label: "dos",
        partitions: [{ type: "83", bootable: true }],
        program: PROGRAM,
      },
      BIOS,
    ],
    ["EFI, GPT", { label: "gpt", loaders: x64 }, UEFI],
    ["EFI, MBR, FAT12", {
      label: "dos",
      loaders: x64,
      fat: 12,
      partitions: [{ type: "ef", size: 40 }],
    }, UEFI],
    ["EFI, FAT32", { label: "gpt", loaders: x64, fat: 32 }, UEFI],
    ["a stub that cannot boot", {
      label: "gpt",
      loaders: x64,
      program: PROGRAM,
    }, UEFI],
    ["GRUB for both", { label: "gpt", loaders: x64, program: GRUB }, BIOS],
    ["a BIOS boot partition beside EFI's", {
      label: "gpt",
      loaders: x64,
      program: PROGRAM,
      partitions: [ESP, {
        type: "21686148-6449-6E6F-744E-656564454649",
        size: 1,
      }],
    }, BIOS],
    ["arm64", { label: "gpt", loaders: aa64 }, ARM],
    ["arm64 behind a stub", {
      label: "gpt",
      loaders: aa64,
      program: PROGRAM,
    }, ARM],
    ["both processors", { label: "gpt", loaders: [...x64, ...aa64] }, {
      firmware: "uefi",
    }],
    ["another loader alone", { label: "gpt", loaders: ["BOOTIA32.EFI"] }, {}],
  ];
  for (const [name, disk, expected] of cases) {
    const image = await makeDisk(dir, disk);
    assertEquals(await findBootLoader(image), expected as object, name);
  }
});

test("findBootLoader() detects the boot loader in every QCOW2 variant", async (dir) => {
  const raw = await makeRaw(dir, { label: "gpt", loaders: ["BOOTAA64.EFI"] });
  for (const form of FORMS) {
    const image = await convert(raw, join(dir, "disk.qcow2"), form);
    assertEquals(await findBootLoader(image), ARM as object, form.join(" "));
  }
});

test("QCOW2 disk: returns the written bytes in every QCOW2 variant", async (dir) => {
  const raw = await makeSparseFile(join(dir, "disk.raw"), 5);
  const written = new Uint8Array(300_000).map((_, at) => at * 7 + (at >> 9));
  await copyFileInto(raw, 12_345, written);
  await copyFileInto(raw, 3 * MIB - 100, written);
  const bytes = await Deno.readFile(raw);
  const place = fc.tuple(fc.nat(6 * MIB), fc.nat(200_000));
  for (const form of FORMS) {
    using disk = await openQcow2Disk(
      await convert(raw, join(dir, "a.qcow2"), form),
    );
    await fc.assert(
      fc.asyncProperty(place, async ([at, length]) => {
        const { buffer } = await disk.read(at, length);
        const got = new Uint8Array(buffer);
        const there = bytes.subarray(at, at + length);
        assertEquals(got.length, length);
        assert(there.every((byte, index) => got[index] === byte), `${at}`);
        assert(got.subarray(there.length).every((byte) => byte === 0));
      }),
      { numRuns: 30 },
    );
  }
});

test("findBootLoader() inspects a disk of 2 TiB", async (dir) => {
  const path = join(dir, "huge.qcow2");
  await must("qemu-img", "create", "-q", "-f", "qcow2", path, "2T");
  const raw = await makeSparseFile(join(dir, "disk.raw"), 1);
  await copyFileInto(raw, 0, GRUB);
  await copyFileInto(raw, 510, new Uint8Array([0x55, 0xaa]));
  assertEquals(await findBootLoader(path), {});
  const small = await convert(raw, join(dir, "small.qcow2"));
  await must("qemu-img", "resize", "-q", small, "2T");
  assertEquals(await findBootLoader(small), BIOS as object);
  using disk = await openQcow2Disk(small);
  const end = await disk.read(2 ** 41 - 512, 1024);
  assert(new Uint8Array(end.buffer).every((byte) => byte === 0));
});

test("findBootLoader() returns a result or throws ToolsmithError for any damaged image", async (dir) => {
  const disks: Disk[] = [{ fat: 32 }, { fat: 16, form: ["-c"] }, { fat: 12 }];
  const byte = fc.record({
    at: fc.oneof(fc.nat(), fc.nat(4 * MIB)),
    value: fc.constantFrom(0, 1, 0x7f, 0x80, 0xff),
  });
  for (const disk of disks) {
    const path = await makeDisk(dir, {
      label: "gpt",
      loaders: ["BOOTX64.EFI"],
      ...disk,
    });
    const image = await Deno.readFile(path);
    // Only non-zero bytes: most of an image is empty.
    const used = [...image.keys()].filter((at) => image[at] !== 0);
    await fc.assert(
      fc.asyncProperty(fc.array(byte, { maxLength: 60 }), async (bytes) => {
        const bad = image.slice();
        for (const { at, value } of bytes) bad[used[at % used.length]] = value;
        await Deno.writeFile(path, bad);
        await findBootLoader(path).catch((error) => {
          if (!(error instanceof ToolsmithError)) throw error;
          assert(["image_invalid", "image_unsafe"].includes(error.code));
        });
      }),
      { numRuns: 60 },
    );
  }
});

test("findBootLoader() stops at a FAT directory whose clusters form a cycle", async (dir) => {
  const path = join(dir, "disk.raw");
  await makeDisk(dir, { label: "gpt", loaders: ["BOOTX64.EFI"], fat: 32 });
  const bytes = await Deno.readFile(path);
  const view = new DataView(bytes.buffer);
  // Makes the root directory, cluster 2, full and its own successor.
  const table = MIB + view.getUint16(MIB + 14, true) * 512;
  const tables = 2 * view.getUint32(MIB + 36, true) * 512;
  view.setUint32(table + 8, 2, true);
  bytes.fill(0x41, table + tables, table + tables + 512);
  await Deno.writeFile(path, bytes);
  const image = await convert(path, join(dir, "circle.qcow2"));
  assertEquals(await findBootLoader(image), {});
});

/** A GPT of 1024 EFI system partitions with endless directories. */
function endless(sectorSize: number, sectorsPerCluster: number) {
  const disk = { reads: 0, bytes: 0, read };
  const table = new DataView(new ArrayBuffer(1024 * 128));
  for (let at = 0; at < table.byteLength; at += 128) {
    table.setBigUint64(at, 0x11d2f81fc12a7328n, true);
    table.setBigUint64(at + 8, 0x3bc93ec9a0004bban, true);
    table.setBigUint64(at + 32, BigInt(1000 + at), true);
  }
  /** Every sector is a FAT32 boot sector, and cluster 2 follows itself. */
  function read(offset: number, length: number) {
    disk.reads++;
    disk.bytes += length;
    const view = new DataView(new ArrayBuffer(length));
    const text = (at: number, value: string) =>
      new Uint8Array(view.buffer).set(new TextEncoder().encode(value), at);
    if (offset === 1024) return Promise.resolve(table);
    if (length === 4) view.setUint32(0, 2, true);
    if (length < 512) return Promise.resolve(view);
    view.setUint16(510, 0xaa55, true);
    text(0, "EFI PART");
    if (offset === 0) view.setUint8(446 + 4, 0xee);
    if (offset === 512) {
      view.setBigUint64(72, 2n, true);
      view.setUint32(80, 1024, true);
      view.setUint32(84, 128, true);
    }
    if (offset <= 512) return Promise.resolve(view);
    view.setUint16(11, sectorSize, true);
    view.setUint8(13, sectorsPerCluster);
    view.setUint16(14, 1, true);
    view.setUint32(32, 0xffffffff, true);
    view.setUint32(44, 2, true);
    return Promise.resolve(view);
  }
  return disk;
}

Deno.test("findBootLoaderOnDisk() limits endless directories to 512 reads and 2 MiB", async () => {
  const TABLE = 1024 * 128;
  for (const [sector, cluster] of [[512, 1], [4096, 128]]) {
    const disk = endless(sector, cluster);
    assertEquals(await findBootLoaderOnDisk(disk), BIOS as object);
    // It reached the directories and hit the limit: a table of
    // partitions, then reads of 4 KiB at least.
    const reads = sector === 512 ? 512 - TABLE / 4096 + 1 : 60;
    assert(disk.reads <= reads && disk.reads > reads / 2, `${disk.reads}`);
    assert(disk.bytes > TABLE && disk.bytes <= 2 * MIB, `${disk.bytes}`);
  }
});

Deno.test("findBootLoaderOnDisk() rejects with the abort reason", async () => {
  const stop = new AbortController();
  const { signal } = stop;
  const disk = endless(512, 1);
  const read = (offset: number, length: number) => {
    if (disk.reads === 9) stop.abort(new Error("enough"));
    return disk.read(offset, length);
  };
  const look = () => findBootLoaderOnDisk({ read }, { signal });
  await assertRejects(look, Error, "enough");
  assertEquals(disk.reads, 10);
});

test("findBootLoader() rejects an image with a backing file", async (dir) => {
  const base = join(dir, "base.qcow2");
  const path = join(dir, "a.qcow2");
  await must("qemu-img", "create", "-q", "-f", "qcow2", base, "1M");
  const options = ["-b", base, "-F", "qcow2"];
  await must("qemu-img", "create", "-q", "-f", "qcow2", ...options, path);
  await expectFailure("image_unsafe", () => findBootLoader(path));
});
