import { assertEquals } from "@std/assert";
import {
  findBootLoader,
  findBootLoaderOnDisk,
} from "../../lib/image/boot_loader.ts";
import { temporaryDir } from "../support/directory.ts";
import { FatFileSystem, putBootLoaders, SparseDisk } from "../support/fat.ts";
import { dataOffset, makeQcow2, writeImage } from "../support/qcow2.ts";

const MIB = 2 ** 20;
const X64 = "BOOTX64 EFI";
const AA64 = "BOOTAA64EFI";
const BIOS = { arch: "x86_64", firmware: "bios" } as const;
const UEFI = { arch: "x86_64", firmware: "uefi" } as const;
const ARM = { arch: "aarch64", firmware: "uefi" } as const;
/** Partition type GUIDs in their on-disk byte order. */
const EFI_SYSTEM = "28732ac11ff8d211ba4b00a0c93ec93b";
const BIOS_BOOT = "4861682149646f6e744e656564454649";
const LINUX = "af3dc60f838472478e793d69d8477de4";

/** A disk with a boot signature in the first sector. */
function signed(program?: number): SparseDisk {
  const disk = new SparseDisk();
  disk.putNumber(510, 0xaa55, 2);
  if (program !== undefined) disk.put(program, [0x90]);
  return disk;
}

function system(disk: SparseDisk, start: number, loaders: string[]) {
  putBootLoaders(new FatFileSystem(disk, { start }), loaders);
}

/** Writes an MBR partition entry, 0 to 3. */
function mbr(
  disk: SparseDisk,
  nth: number,
  { type, active = false, start = MIB }: {
    type: number;
    active?: boolean;
    start?: number;
  },
) {
  const at = 446 + nth * 16;
  disk.putNumber(at, active ? 0x80 : 0, 1);
  disk.putNumber(at + 4, type, 1);
  disk.putNumber(at + 8, start / 512, 4);
}

/** A partition of a GPT. */
interface GptEntry {
  type: string;
  start?: number | bigint;
  attributes?: bigint;
}

/** Writes a GPT to a disk. */
function gpt(
  disk: SparseDisk,
  entries: GptEntry[],
  { size = 128, count = entries.length, signature = "EFI PART", table = 2n } =
    {},
) {
  mbr(disk, 0, { type: 0xee });
  disk.put(512, new TextEncoder().encode(signature));
  disk.putNumber(512 + 72, table, 8);
  disk.putNumber(512 + 80, count, 4);
  disk.putNumber(512 + 84, size, 4);
  entries.forEach(({ type, start = MIB, attributes = 0n }, nth) => {
    const at = 1024 + nth * size;
    disk.put(at, Uint8Array.fromHex(type));
    disk.putNumber(at + 32, BigInt(start) / 512n, 8);
    disk.putNumber(at + 48, attributes, 8);
  });
}

Deno.test("findBootLoaderOnDisk() reports BIOS for code in the first 440 bytes of a signed sector", async () => {
  for (const [at, expected] of [[0, BIOS], [439, BIOS], [440, {}]] as const) {
    assertEquals(await findBootLoaderOnDisk(signed(at)), expected, `${at}`);
  }
  const unsigned = new SparseDisk();
  unsigned.put(0, [0x90]);
  assertEquals(await findBootLoaderOnDisk(unsigned), {});
});

Deno.test("findBootLoaderOnDisk() finds an EFI system partition in each MBR slot", async () => {
  for (const nth of [0, 1, 2, 3]) {
    const disk = signed();
    mbr(disk, nth, { type: 0xef, start: 3 * MIB });
    system(disk, 3 * MIB, [X64]);
    assertEquals(await findBootLoaderOnDisk(disk), UEFI);
  }
  // Other types and unsigned tables are ignored.
  const other = signed();
  mbr(other, 0, { type: 0x0b });
  system(other, MIB, [X64]);
  assertEquals(await findBootLoaderOnDisk(other), {});
  const unsigned = new SparseDisk();
  mbr(unsigned, 0, { type: 0xef });
  system(unsigned, MIB, [X64]);
  assertEquals(await findBootLoaderOnDisk(unsigned), {});
});

Deno.test("findBootLoaderOnDisk() prefers BIOS to UEFI when an MBR partition is active", async () => {
  const cases: [{ type: number; active?: boolean }, object][] = [
    [{ type: 0x83, active: true }, BIOS],
    [{ type: 0x83, active: false }, UEFI],
    [{ type: 0, active: true }, UEFI],
  ];
  for (const [partition, expected] of cases) {
    for (const [first, second] of [[0, 1], [3, 2]]) {
      const disk = signed(5);
      mbr(disk, first, { type: 0xef });
      system(disk, MIB, [X64]);
      mbr(disk, second, { ...partition, start: 9 * MIB });
      assertEquals(await findBootLoaderOnDisk(disk), expected);
    }
  }
  // Without boot code, BIOS boots nothing.
  const empty = signed();
  mbr(empty, 0, { type: 0x83, active: true });
  assertEquals(await findBootLoaderOnDisk(empty), {});
});

Deno.test("findBootLoaderOnDisk() prefers BIOS to UEFI when the boot code is GRUB", async () => {
  for (
    const [at, expected] of [[100, BIOS], [436, BIOS], [437, UEFI]] as const
  ) {
    const disk = signed(5);
    gpt(disk, [{ type: EFI_SYSTEM }]);
    system(disk, MIB, [X64]);
    disk.put(at, new TextEncoder().encode("GRUB"));
    assertEquals(await findBootLoaderOnDisk(disk), expected, `${at}`);
  }
});

Deno.test("findBootLoaderOnDisk() decides by EFI loaders and boot code: arm64 alone is aarch64, else boot code is BIOS", async () => {
  const cases: [string[], boolean, object][] = [
    [[AA64], false, ARM],
    [[AA64], true, ARM],
    [[X64], false, UEFI],
    [[X64], true, BIOS],
    [[X64, AA64], false, { firmware: "uefi" }],
    [[X64, AA64], true, BIOS],
    [[], false, {}],
    [[], true, BIOS],
  ];
  for (const [loaders, program, expected] of cases) {
    const disk = signed(program ? 7 : undefined);
    gpt(disk, [{ type: LINUX }, { type: EFI_SYSTEM }, {
      type: BIOS_BOOT,
      start: 8 * MIB,
    }]);
    system(disk, MIB, loaders);
    assertEquals(
      await findBootLoaderOnDisk(disk),
      expected,
      `${loaders} ${program}`,
    );
  }
});

Deno.test("findBootLoaderOnDisk() inspects every EFI system partition", async () => {
  const disk = signed();
  gpt(disk, [{ type: EFI_SYSTEM }, { type: EFI_SYSTEM, start: 9 * MIB }]);
  system(disk, MIB, [AA64]);
  system(disk, 9 * MIB, [X64]);
  assertEquals(await findBootLoaderOnDisk(disk), { firmware: "uefi" });
});

Deno.test("findBootLoaderOnDisk() honors a BIOS boot partition and the legacy-bootable attribute in a GPT", async () => {
  const cases: [GptEntry, object][] = [
    [{ type: LINUX, attributes: 4n }, BIOS],
    [{ type: LINUX, attributes: 5n }, BIOS],
    [{ type: LINUX, attributes: 3n }, UEFI],
    [{ type: BIOS_BOOT }, BIOS],
    [{ type: LINUX }, UEFI],
  ];
  for (const [entry, expected] of cases) {
    for (const entries of [[entry], [entry, { type: LINUX, start: 0 }]]) {
      const disk = signed(5);
      gpt(disk, [{ type: EFI_SYSTEM }, ...entries]);
      system(disk, MIB, [X64]);
      assertEquals(await findBootLoaderOnDisk(disk), expected);
    }
  }
});

Deno.test("findBootLoaderOnDisk() reads a GPT by the sizes in its header", async () => {
  type Options = Parameters<typeof gpt>[2];
  const cases: [Options, object][] = [
    [{ size: 128 }, UEFI],
    [{ size: 512 }, UEFI],
    [{ size: 127 }, {}],
    [{ size: 513 }, {}],
    [{ size: 1024 }, {}],
    [{ count: 2 }, UEFI],
    // The second entry is outside the table.
    [{ count: 1 }, {}],
    [{ signature: "EFI PARS" }, {}],
    [{ table: 1n << 60n }, {}],
  ];
  for (const [options, expected] of cases) {
    const disk = signed();
    gpt(disk, [{ type: LINUX }, { type: EFI_SYSTEM }], options);
    system(disk, MIB, [X64]);
    assertEquals(
      await findBootLoaderOnDisk(disk),
      expected,
      String(options?.size),
    );
  }
  // Without a protective partition, the MBR table counts.
  const disk = signed();
  gpt(disk, [{ type: EFI_SYSTEM }]);
  system(disk, MIB, [X64]);
  mbr(disk, 0, { type: 0x83 });
  assertEquals(await findBootLoaderOnDisk(disk), {});
});

Deno.test("findBootLoaderOnDisk() inspects at most 1024 GPT entries, and skips offsets beyond any disk", async () => {
  for (const [nth, expected] of [[1023, UEFI], [1024, {}]] as const) {
    const disk = signed();
    const entries = Array.from({ length: nth }, () => ({ type: LINUX }));
    gpt(disk, [...entries, { type: EFI_SYSTEM }]);
    system(disk, MIB, [X64]);
    assertEquals(await findBootLoaderOnDisk(disk), expected, `${nth}`);
  }
  const disk = signed();
  gpt(disk, [{ type: EFI_SYSTEM, start: 1n << 62n }, { type: EFI_SYSTEM }]);
  system(disk, MIB, [X64]);
  assertEquals(await findBootLoaderOnDisk(disk), UEFI);
});

Deno.test("findBootLoader() closes the image", async () => {
  await using dir = await temporaryDir();
  const sector = new Uint8Array(512).fill(0x90, 0, 9);
  sector.set([0x55, 0xaa], 510);
  const image = makeQcow2({ tables: [[BigInt(dataOffset({}))]], data: sector });
  const path = await writeImage(`${dir.path}/a.qcow2`, image);
  assertEquals(await findBootLoader(path), BIOS);
});
