/**
 * What `fetch` trusts.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/**
 * Makes a client that trusts a private certificate authority as well.
 *
 * Needs `--allow-read` for its file.
 *
 * @param caFile A PEM file with the authority, or `undefined` for none.
 * @param options Of the client, passed on.
 * @returns The client, to be closed.
 * @throws {ToolsmithError} `file_unreadable`, `tls_failed`.
 */
export async function httpClient(
  caFile: string | undefined,
  options: Deno.CreateHttpClientOptions = {},
): Promise<Deno.HttpClient> {
  if (caFile === undefined) return Deno.createHttpClient(options);
  const failed = (code: "file_unreadable" | "tls_failed", verb: string) =>
  (
    cause: Error,
  ) => {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    const hint = code === "tls_failed"
      ? "--ca-file takes a PEM file"
      : "check the path in --ca-file";
    throw new ToolsmithError(
      code,
      `Cannot ${verb} the certificate authority ${caFile}: ${cause.message}`,
      { hint, cause },
    );
  };
  const authority = await Deno.readTextFile(caFile)
    .catch(failed("file_unreadable", "read"));
  try {
    return Deno.createHttpClient({ ...options, caCerts: [authority] });
  } catch (cause) {
    return failed("tls_failed", "use")(cause as Error);
  }
}
