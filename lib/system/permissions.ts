/** Queries Deno's permissions without a prompt. */

export function isPermissionGranted(descriptor: Deno.PermissionDescriptor) {
  return Deno.permissions.querySync(descriptor).state === "granted";
}
