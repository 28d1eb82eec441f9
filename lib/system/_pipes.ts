/**
 * The pipes to a program: what it reads, and what it prints.
 *
 * @module
 */

/**
 * Where an output stream of a program goes. A function must not throw; the
 * program waits while a promise of it is pending.
 */
export type ProcessOutput =
  | "inherit"
  | "null"
  | ((chunk: Uint8Array) => void)
  | ((chunk: Uint8Array) => Promise<void>);

/** What a program reads. */
export type ProcessInput =
  | "inherit"
  | "null"
  | string
  | { bytes: Uint8Array }
  | { stream: ReadableStream<Uint8Array> }
  | "held";

const MAX_CAPTURE = 32 * 1024 * 1024;

/** Writes the input; a program that stops reading early is not an error. */
export function feed(child: Deno.ChildProcess, input: ProcessInput) {
  if (input === "null" || input === "inherit") {
    return { close: () => Promise.resolve() };
  }
  const ignore = () => {};
  if (typeof input === "object" && "stream" in input) {
    const stop = new AbortController();
    const done = input.stream
      .pipeTo(child.stdin, { signal: stop.signal })
      .catch(ignore);
    return {
      close() {
        stop.abort();
        return done;
      },
    };
  }
  const writer = child.stdin.getWriter();
  if (input === "held") {
    const closeSignal = new Uint8Array([0x0a]);
    return {
      close: () =>
        writer.write(closeSignal).then(() => writer.close()).catch(ignore),
    };
  }
  const done = writer
    .write(
      typeof input === "string" ? new TextEncoder().encode(input) : input.bytes,
    )
    .then(() => writer.close())
    .catch(ignore);
  return { close: () => done };
}

/** Reads a stream to its end, or until it is cancelled. */
export function drain(
  stream: ReadableStream<Uint8Array>,
  sink: Exclude<ProcessOutput, string>,
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

/**
 * Keeps what a program prints, up to 32 MiB.
 *
 * @param onFull Called with each chunk that would be more.
 */
export function capture(onFull: () => void) {
  const chunks: Uint8Array[] = [];
  let size = 0;
  return {
    add(chunk: Uint8Array) {
      if (size + chunk.length > MAX_CAPTURE) return onFull();
      size += chunk.length;
      chunks.push(chunk);
    },
    bytes(): Uint8Array<ArrayBuffer> {
      const whole = new Uint8Array(size);
      let offset = 0;
      for (const chunk of chunks) {
        whole.set(chunk, offset);
        offset += chunk.length;
      }
      return whole;
    },
  };
}
