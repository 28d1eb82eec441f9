/** Waits for a new ctime, which programs cannot set. */
import { readFileIdentity } from "../../lib/system/files.ts";

/**
 * Waits until new files get another ctime than earlier ones: Deno reports it in whole
 * seconds.
 *
 * @param dir A directory of the file system.
 */
export async function waitForNextChangeTime(dir: string): Promise<void> {
  const probe = await Deno.makeTempFile({ dir });
  try {
    const before = await readFileIdentity(probe);
    do {
      await new Promise((done) => setTimeout(done, 20));
      await Deno.writeTextFile(probe, "x");
    } while ((await readFileIdentity(probe))?.ctime === before?.ctime);
  } finally {
    await Deno.remove(probe);
  }
}
