/** Collects a program's output and waits for text in it. */

export function waitingTextSink() {
  let text = "";
  let waiting: { words: string; done: () => void } | undefined;
  const decoder = new TextDecoder();
  return {
    sink(chunk: Uint8Array) {
      text += decoder.decode(chunk, { stream: true });
      if (waiting && text.includes(waiting.words)) waiting.done();
    },
    said: () => text,
    until(words: string): Promise<void> {
      if (text.includes(words)) return Promise.resolve();
      return new Promise((done) => waiting = { words, done });
    },
  };
}
