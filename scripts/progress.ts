/**
 * Says what is going on, and for how long already: in one line that is
 * rewritten each second on a terminal, in a line every half a minute in a log.
 *
 * @module
 */

/** Where and how {@linkcode Progress} writes. */
export interface ProgressOptions {
  /** Begins each line. @default {""} */
  prefix?: string;
  /** What it writes to. @default {Deno.stderr} */
  output?: Pick<typeof Deno.stderr, "writeSync" | "isTerminal">;
  /** The time, in milliseconds. @default {performance.now} */
  now?: () => number;
}

/** A step is repeated in a log whenever so many seconds have passed. */
const LOG_EVERY_S = 30;

/** Steps that go on at the same time, and the lines that are printed meanwhile. */
export class Progress {
  readonly #steps = new Map<string, { since: number; said: number }>();
  readonly #prefix: string;
  readonly #output: NonNullable<ProgressOptions["output"]>;
  readonly #now: () => number;
  readonly #terminal: boolean;
  #timer?: ReturnType<typeof setInterval>;

  constructor(options: ProgressOptions = {}) {
    const { prefix = "", output = Deno.stderr } = options;
    this.#prefix = prefix;
    this.#output = output;
    this.#now = options.now ?? (() => performance.now());
    this.#terminal = output.isTerminal() && Deno.env.get("TERM") !== "dumb";
  }

  /** Prints a line, or several, that stay. */
  line(text: string): void {
    this.#write(`${this.#erase()}${this.#prefix}${text}\n${this.#status()}`);
  }

  /**
   * Begins a step, and leaves a line for it.
   *
   * @param title What is done, such as "building oras".
   * @returns What ends the step when it is disposed.
   */
  step(title: string): Disposable {
    if (!this.#terminal) this.line(title);
    const since = this.#now();
    const watched = this.watch(title);
    return {
      [Symbol.dispose]: () => {
        watched[Symbol.dispose]();
        const seconds = Math.floor((this.#now() - since) / 1000);
        if (this.#terminal) this.line(`${title}: ${seconds} s`);
      },
    };
  }

  /** Begins a step that is shown while it goes on, and leaves no line. */
  watch(title: string): Disposable {
    this.#steps.set(title, { since: this.#now(), said: 0 });
    this.#timer ??= setInterval(() => this.tick(), 1000);
    if (this.#terminal) this.tick();
    return {
      [Symbol.dispose]: () => {
        this.#steps.delete(title);
        if (this.#steps.size > 0) return;
        clearInterval(this.#timer);
        this.#timer = undefined;
        if (this.#terminal) this.tick();
      },
    };
  }

  /** Shows how long the steps have taken; a timer calls it each second. */
  tick(): void {
    if (this.#terminal) return this.#write(this.#erase() + this.#status());
    for (const [title, step] of this.#steps) {
      const seconds = this.#seconds(title);
      if (seconds - step.said < LOG_EVERY_S) continue;
      step.said = seconds;
      this.line(`still ${title} (${seconds} s)`);
    }
  }

  #seconds(title: string): number {
    return Math.floor((this.#now() - this.#steps.get(title)!.since) / 1000);
  }

  #erase(): string {
    return this.#terminal ? "\r\x1b[K" : "";
  }

  #status(): string {
    if (!this.#terminal || this.#steps.size === 0) return "";
    const parts = [...this.#steps.keys()]
      .map((title) => `${title} (${this.#seconds(title)} s)`);
    // A line that wraps could not be erased.
    const width = consoleColumns() - 1;
    return `${this.#prefix}${parts.join(", ")}`.slice(0, width);
  }

  #write(text: string): void {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) {
      at += this.#output.writeSync(bytes.subarray(at));
    }
  }
}

function consoleColumns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    return 80;
  }
}
