/**
 * A disk with only a boot sector: it boots as soon as the firmware has read it, and
 * needs no guest.
 */
import { runProcess } from "../../lib/system/process.ts";

/** Printed on the console when the boot sector runs. */
export const GREETING = "sector up";

const SECTOR = 512;
/** Registers of the chipset's power management, where SeaBIOS puts them. */
const [PM_STATUS, PM_ENABLE, PM_CONTROL] = [0x600, 0x602, 0x604];
const POWER_BUTTON = 0x0100;
const SOFT_OFF = 0x2000;
const [SERIAL, SERIAL_STATUS] = [0x3f8, 0x3fd];

const word = (value: number) => [value & 0xff, value >> 8];
/** `mov dx, port; mov ax, value; out dx, ax` */
const outWord = (port: number, value: number) => [
  ...[0xba, ...word(port), 0xb8, ...word(value)],
  0xef,
];

/** What makes it power off. */
const ENDS = {
  /** When something is typed on the console. */
  atKey: [
    // Again: mov dx, status; in al, dx; test al, 1; jz again
    ...[0xba, ...word(SERIAL_STATUS), 0xec, 0xa8, 0x01, 0x74, 0xf8],
  ],
  /** When the power button is pressed. */
  atPowerButton: [
    // Again: mov dx, status; in ax, dx; test ah, 1; jz again
    ...[0xba, ...word(PM_STATUS), 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7],
  ],
};

/**
 * Makes such a disk for x86-64.
 *
 * @param path The QCOW2 to write.
 * @param ends What makes it power off.
 */
export async function makeBootSector(
  path: string,
  ends: keyof typeof ENDS,
): Promise<void> {
  const greet = [...`${GREETING}\r\n`].flatMap((letter) => [
    // Wait until the byte is sent: a busy host reads slowly.
    // mov dx, status; again: in al, dx; test al, 0x20; jz again
    ...[0xba, ...word(SERIAL_STATUS), 0xec, 0xa8, 0x20, 0x74, 0xfb],
    // mov dx, port; mov al, letter; out dx, al
    ...[0xba, ...word(SERIAL), 0xb0, letter.charCodeAt(0), 0xee],
  ]);
  const code = [
    // cli: the firmware's timer interrupt would consume input.
    0xfa,
    // The button is lost before that: a test presses it after the greeting.
    ...outWord(PM_ENABLE, POWER_BUTTON),
    ...greet,
    ...ENDS[ends],
    ...outWord(PM_CONTROL, SOFT_OFF),
    // hlt, again and again
    ...[0xf4, 0xeb, 0xfd],
  ];
  // The firmware needs at least one cylinder.
  const disk = new Uint8Array(1024 * 1024);
  disk.set(code);
  disk.set([0x55, 0xaa], SECTOR - 2);
  await Deno.writeFile(`${path}.raw`, disk);
  const args = ["convert", "-f", "raw", "-O", "qcow2", `${path}.raw`, path];
  const { code: status, stderr } = await runProcess("qemu-img", { args });
  await Deno.remove(`${path}.raw`);
  if (status !== 0) throw new Error(stderr);
}
