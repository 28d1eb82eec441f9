/** A fake virtio-serial port. */

/** A port that delivers chunks, then its end or an error. */
export function portSending(
  chunks: (string | Uint8Array)[],
  broken = false,
): Deno.UnixConn {
  let at = 0;
  return {
    read(buffer: Uint8Array) {
      const chunk = chunks[at++];
      if (chunk === undefined && broken) {
        return Promise.reject(new Deno.errors.ConnectionReset());
      }
      if (chunk === undefined) return Promise.resolve(null);
      const bytes = typeof chunk === "string"
        ? new TextEncoder().encode(chunk)
        : chunk;
      buffer.set(bytes);
      return Promise.resolve(bytes.length);
    },
  } as Deno.UnixConn;
}
