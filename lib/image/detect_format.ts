/**
 * Detects the format of a file that is not a QCOW2 image, for an error message with
 * a hint.
 */
import { quoteShellWord } from "../path.ts";
import { ToolsmithError } from "../errors.ts";

/** Bytes needed to recognize the formats that are mistaken for QCOW2. */
export const FORMAT_PROBE_BYTES = 1024;

interface DetectedFormat {
  /** Completes "it is …". */
  format: string;
  /** Command that decompresses standard input. */
  decompressor?: string;
  /** @default {CONVERT_HINT}, or how to decompress the file */
  hint?: string;
}

const CONVERT_HINT =
  "convert the image: qemu-img convert -O qcow2 IMAGE IMAGE.qcow2";
const WRONG_URL_HINT =
  "use the path or URL of the image itself; if the URL requires a login, download the image and use its path";
const UNPACK_ARCHIVE_HINT = "unpack the archive, and use the QCOW2 image in it";

/** Offset, magic bytes and format; the first match counts. */
const BINARY_SIGNATURES: [number, string, DetectedFormat][] = [
  [0, "\x1f\x8b", { format: "compressed with gzip", decompressor: "gunzip" }],
  [0, "\xfd7zXZ\0", { format: "compressed with xz", decompressor: "xz -d" }],
  [0, "\x28\xb5\x2f\xfd", {
    format: "compressed with zstd",
    decompressor: "zstd -d",
  }],
  [0, "BZh", { format: "compressed with bzip2", decompressor: "bunzip2" }],
  [0, "PK\x03\x04", { format: "a ZIP archive", hint: UNPACK_ARCHIVE_HINT }],
  [257, "ustar", { format: "a tar archive", hint: UNPACK_ARCHIVE_HINT }],
  [0, "KDMV", { format: "a VMDK image" }],
  [0, "# Disk DescriptorFile", { format: "a VMDK image" }],
  [0, "vhdxfile", { format: "a VHDX image" }],
  [0, "<<< ", { format: "a VDI image" }],
  [510, "\x55\xaa", {
    format: "a raw disk",
    hint:
      "convert the disk: qemu-img convert -f raw -O qcow2 IMAGE IMAGE.qcow2",
  }],
];

const TEXT_SIGNATURES: [RegExp, string][] = [
  [/^<(?:!doctype html|html|head|body)\b/i, "an HTML page"],
  [/^<(?:\?xml|[a-z]+[\s>])/i, "XML text"],
  [/^(?:\{\s*["}]|\[\s*["{[\]])/, "JSON text"],
];

/**
 * Recognizes a file that is not a QCOW2 image by its first
 * {@linkcode FORMAT_PROBE_BYTES}; `undefined` if unknown, or QCOW2.
 */
export function detectNonQcow2Format(
  head: Uint8Array,
): DetectedFormat | undefined {
  if (head.length === 0) return { format: "empty", hint: WRONG_URL_HINT };
  const latin1 = String.fromCharCode(...head.subarray(0, FORMAT_PROBE_BYTES));
  for (const [offset, magic, detected] of BINARY_SIGNATURES) {
    if (latin1.startsWith(magic, offset)) return detected;
  }
  const text = latin1.replace(/^\xef\xbb\xbf/, "").trimStart();
  const [, format] = TEXT_SIGNATURES.find(([it]) => it.test(text)) ?? [];
  return format === undefined ? undefined : { format, hint: WRONG_URL_HINT };
}

/** `head` is the first bytes, `shown` a path or URL without secrets. */
export function notQcow2Error(head: Uint8Array, shown: string): ToolsmithError {
  const detected = detectNonQcow2Format(head);
  const { format, decompressor } = detected ?? {};
  const input = shown.startsWith("https:")
    ? `curl -L ${quoteShellWord(shown)} | ${decompressor}`
    : `${decompressor} <IMAGE`;
  const hint = decompressor
    ? `decompress the image: ${input} >IMAGE.qcow2`
    : detected?.hint ?? CONVERT_HINT;
  const why = format ? `: it is ${format}` : "";
  const message = `${shown} is not a QCOW2 image${why}`;
  return new ToolsmithError("image_invalid", message, { hint });
}
