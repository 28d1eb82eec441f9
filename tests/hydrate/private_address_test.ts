import { assertEquals } from "@std/assert";
import { isPrivateAddress } from "../../lib/hydrate/_private_address.ts";

Deno.test("addresses of this host and of private networks are known, others are not", () => {
  const private_ = `0.0.0.0 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1
    127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.168.1.1
    198.19.0.1 224.0.0.1 255.255.255.255 :: ::1 [::1] fe80::1 fe80::1%eth0
    fd00::1 fc00:: ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:7f00:1
    ::127.0.0.1 ::1234:808:808 64:ff9b::10.0.0.1 2002:7f00:1:: 1.2.3 999.1.1.1.1 x`;
  const global_ = `1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255
    100.128.0.0 126.255.255.255 128.0.0.1 169.253.0.1 172.15.0.1 172.32.0.1
    192.167.1.1 192.169.1.1 198.17.0.1 198.20.0.1 223.255.255.255
    2606:4700::1111 [2a00::1] ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::
    2001:db8::ffff:7f00:1 ::ffff:8.8.127.1`;
  for (const address of private_.split(/\s+/)) {
    assertEquals(isPrivateAddress(address), true, address);
  }
  for (const address of global_.split(/\s+/)) {
    assertEquals(isPrivateAddress(address), false, address);
  }
});
