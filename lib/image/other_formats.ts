/**
 * Says what a file is that should be a QCOW2 image and is not, by its first
 * bytes, and what to do with it.
 *
 * @module
 */
import { shellWord } from "../path.ts";
import { ToolsmithError } from "../errors.ts";

/** So many bytes tell formats apart that are mistaken for images. */
export const HEAD_BYTES = 1024;

/** A format. */
interface Format {
  /** What it is, to follow "it is". */
  is: string;
  /** A program that decompresses it. */
  unpack?: string;
  /** What to do with it. @default {CONVERT}, or to decompress it */
  hint?: string;
}

const CONVERT =
  "convert the image: qemu-img convert -O qcow2 IMAGE IMAGE.qcow2";
const OTHER_ADDRESS =
  "use the address of the image itself; if that asks for a login, download the image yourself and name its file";
const UNPACK = "unpack the archive, and use the QCOW2 image in it";

/** Where it begins, with what, and what that is: the first that matches counts. */
const BINARY: [number, string, Format][] = [
  [0, "\x1f\x8b", { is: "compressed with gzip", unpack: "gunzip" }],
  [0, "\xfd7zXZ\0", { is: "compressed with xz", unpack: "xz -d" }],
  [0, "\x28\xb5\x2f\xfd", { is: "compressed with zstd", unpack: "zstd -d" }],
  [0, "BZh", { is: "compressed with bzip2", unpack: "bunzip2" }],
  [0, "PK\x03\x04", { is: "a ZIP archive", hint: UNPACK }],
  [257, "ustar", { is: "a tar archive", hint: UNPACK }],
  [0, "KDMV", { is: "a VMDK image" }],
  [0, "# Disk DescriptorFile", { is: "a VMDK image" }],
  [0, "vhdxfile", { is: "a VHDX image" }],
  [0, "<<< ", { is: "a VDI image" }],
  [510, "\x55\xaa", {
    is: "a raw disk",
    hint:
      "convert the disk: qemu-img convert -f raw -O qcow2 IMAGE IMAGE.qcow2",
  }],
];

const TEXT: [RegExp, string][] = [
  [/^<(?:!doctype html|html|head|body)\b/i, "an HTML page"],
  [/^<(?:\?xml|[a-z]+[\s>])/i, "XML text"],
  [/^(?:\{\s*["}]|\[\s*["{[\]])/, "JSON text"],
];

/**
 * Recognizes a file that is not a QCOW2 image.
 *
 * @param head Its first {@linkcode HEAD_BYTES}, or all that there are.
 * @returns What it is; `undefined` where that is not known.
 */
export function otherFormat(head: Uint8Array): Format | undefined {
  if (head.length === 0) return { is: "empty", hint: OTHER_ADDRESS };
  const letters = String.fromCharCode(...head.subarray(0, HEAD_BYTES));
  const binary = BINARY.find(([at, magic]) => letters.startsWith(magic, at));
  if (binary) return binary[2];
  const text = letters.replace(/^\xef\xbb\xbf/, "").trimStart();
  const [, is] = TEXT.find(([match]) => match.test(text)) ?? [];
  return is === undefined ? undefined : { is, hint: OTHER_ADDRESS };
}

/**
 * Makes the error of a file that is not a QCOW2 image.
 *
 * @param head Its first bytes.
 * @param shown Its path or address, as a person may see it.
 */
export function notQcow2(head: Uint8Array, shown: string): ToolsmithError {
  const { is, unpack, hint = CONVERT } = otherFormat(head) ?? {};
  const input = shown.startsWith("https:")
    ? `curl -L ${shellWord(shown)} | ${unpack}`
    : `${unpack} <IMAGE`;
  return new ToolsmithError(
    "image_invalid",
    `${shown} is not a QCOW2 image${is ? `: it is ${is}` : ""}`,
    { hint: unpack ? `decompress the image: ${input} >IMAGE.qcow2` : hint },
  );
}
