/** Pipes of a child process: writes its input and reads its output. */

/**
 * Destination of a program's output stream. A callback must not throw; while its
 * promise is pending, backpressure stops the program.
 */
export type ProcessOutputTarget =
  | "inherit"
  | "null"
  | ((chunk: Uint8Array) => void)
  | ((chunk: Uint8Array) => Promise<void>);

/** Standard input of a program. */
export type ProcessInput =
  | "inherit"
  | "null"
  | string
  | { bytes: Uint8Array }
  | { stream: ReadableStream<Uint8Array> }
  | "held";

const MAX_CAPTURED_BYTES = 32 * 1024 * 1024;

/** Writes the input. EPIPE is ignored: a program may stop reading early. */
export function writeProcessInput(
  child: Deno.ChildProcess,
  input: ProcessInput,
) {
  if (input === "null" || input === "inherit") return { async close() {} };
  const ignore = () => {};
  if (input === "held") {
    const writer = child.stdin.getWriter();
    const endOfInput = new Uint8Array([0x0a]);
    const close = () =>
      writer.write(endOfInput).then(() => writer.close()).catch(ignore);
    return { close };
  }
  const isStream = typeof input === "object" && "stream" in input;
  const stop = new AbortController();
  const done = (isStream ? input.stream : streamOf(input))
    .pipeTo(child.stdin, { signal: stop.signal }).catch(ignore);
  return {
    close() {
      // A stream may never end.
      if (isStream) stop.abort();
      return done;
    },
  };
}

function streamOf(input: string | { bytes: Uint8Array }) {
  const bytes = typeof input === "string"
    ? new TextEncoder().encode(input)
    : input.bytes;
  return ReadableStream.from([bytes]);
}

/** Reads an output stream until its end or `cancel()`. */
export function readProcessOutput(
  stream: ReadableStream<Uint8Array>,
  sink: Exclude<ProcessOutputTarget, string>,
) {
  const reader = stream.getReader();
  return {
    done: (async () => {
      for (;;) {
        const { value } = await reader.read();
        if (value === undefined) return;
        await sink(value);
      }
    })(),
    cancel: () => reader.cancel(),
  };
}

/** Buffers up to 32 MiB of output; `onFull` is called for each chunk beyond. */
export function createOutputBuffer(onFull: () => void) {
  const chunks: BlobPart[] = [];
  let size = 0;
  return {
    add(chunk: Uint8Array) {
      if (size + chunk.length > MAX_CAPTURED_BYTES) return onFull();
      size += chunk.length;
      chunks.push(chunk as Uint8Array<ArrayBuffer>);
    },
    bytes: () => new Blob(chunks).bytes() as Promise<Uint8Array<ArrayBuffer>>,
  };
}
