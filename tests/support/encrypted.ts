/**
 * An encrypted QCOW2.
 *
 * @module
 */
import { run } from "../../lib/system/process.ts";

const TRIES = 50;

/**
 * Makes a QCOW2 that is encrypted with LUKS.
 *
 * @param path The file to make.
 */
export async function makeEncrypted(path: string) {
  const format =
    "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10";
  let said = "";
  for (let tries = 0; tries < TRIES; tries++) {
    const { code, stderr } = await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2"].concat(
        ["--object", "secret,id=k,data=none", "-o", format, path, "1M"],
      ),
    });
    if (code === 0) return;
    said = stderr;
    // It times its own key derivation, and on a busy machine may fail to.
    if (!/accurate CPU usage/.test(stderr)) break;
  }
  throw new Error(said);
}
