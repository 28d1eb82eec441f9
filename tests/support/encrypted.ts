/** An encrypted QCOW2. */
import { runProcess } from "../../lib/system/process.ts";

/**
 * Makes an encrypted QCOW2 with the older AES method: for LUKS, qemu-img benchmarks
 * the processor first and fails on a busy host.
 *
 * @param path The file to make.
 */
export async function makeEncryptedQcow2(path: string) {
  const format = "encrypt.format=aes,encrypt.key-secret=k";
  const { code, stderr } = await runProcess("qemu-img", {
    args: ["create", "-q", "-f", "qcow2"].concat(
      ["--object", "secret,id=k,data=none", "-o", format, path, "1M"],
    ),
  });
  if (code !== 0) throw new Error(stderr);
}
