/**
 * Replaces methods of global objects, such as clocks, timers and system calls.
 */

/**
 * Replaces fields of an object.
 *
 * @param target The object, such as `globalThis` or `Deno`.
 * @param fields The replacements.
 * @returns Disposing restores the original fields.
 */
export function replaceMethod<T extends object>(
  target: T,
  fields: Partial<Record<keyof T, unknown>>,
): Disposable {
  const before: Partial<Record<keyof T, unknown>> = {};
  for (const name of Object.keys(fields) as (keyof T)[]) {
    before[name] = target[name];
  }
  Object.assign(target, fields);
  return { [Symbol.dispose]: () => void Object.assign(target, before) };
}
