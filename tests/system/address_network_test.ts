import { assert, assertEquals } from "@std/assert";
import {
  addressGroups,
  isLoopback,
  type Network,
  networkOf,
} from "../../lib/system/address_network.ts";

Deno.test("addresses of this host and of private networks are known, others are not", () => {
  const private_ = `0.0.0.0 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1
    127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.168.1.1
    198.19.0.1 224.0.0.1 255.255.255.255 :: ::1 [::1] fe80::1 fe80::1%eth0
    fd00::1 fc00:: ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:7f00:1
    ::127.0.0.1 ::1234:808:808 64:ff9b::10.0.0.1 2002:7f00:1:: 64:ff9b:1:7f00::8.8.8.8
    2001:0:7f00:1:: 1.2.3 999.1.1.1.1 x`;
  const global_ = `1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255
    100.128.0.0 126.255.255.255 128.0.0.1 169.253.0.1 172.15.0.1 172.32.0.1
    192.167.1.1 192.169.1.1 198.17.0.1 198.20.0.1 223.255.255.255
    2606:4700::1111 [2a00::1] ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::
    2001:db8::ffff:7f00:1 ::ffff:8.8.127.1`;
  for (const address of private_.split(/\s+/)) {
    assert(networkOf(address) !== "internet", address);
  }
  for (const address of global_.split(/\s+/)) {
    assertEquals(networkOf(address), "internet", address);
  }
});

/** The first and the last address of each range that is no place on the internet. */
const RANGES: [string, string, Network][] = [
  ["0.0.0.0", "0.255.255.255", "host"],
  ["10.0.0.0", "10.255.255.255", "private"],
  ["100.64.0.0", "100.127.255.255", "private"],
  ["127.0.0.0", "127.255.255.255", "host"],
  ["169.254.0.0", "169.254.255.255", "host"],
  ["172.16.0.0", "172.31.255.255", "private"],
  ["192.0.0.0", "192.0.0.255", "host"],
  ["192.168.0.0", "192.168.255.255", "private"],
  ["198.18.0.0", "198.19.255.255", "host"],
  ["224.0.0.0", "255.255.255.255", "host"],
];

/** The address that is so many after one. */
function after(address: string, count: number): string {
  const bytes = address.split(".").map(Number);
  const number = bytes.reduce((sum, byte) => sum * 256 + byte, 0) + count;
  return [24, 16, 8, 0].map((by) => number / 2 ** by & 255).join(".");
}

Deno.test("each private range begins and ends where it should, and what is written into IPv6, too", () => {
  const forms = [
    (address: string) => address,
    (address: string) => `::ffff:${address}`,
    (address: string) => `64:ff9b::${address}`,
    (address: string) => {
      const hex = address.split(".").map((it) => Number(it) + 256)
        .map((it) => it.toString(16).slice(1)).join("");
      return `2002:${hex.slice(0, 4)}:${hex.slice(4)}::1`;
    },
  ];
  for (const form of forms) {
    for (const [first, last, network] of RANGES) {
      for (const inside of [first, last, after(first, 1)]) {
        assertEquals(networkOf(form(inside)), network, form(inside));
      }
      for (const outside of [after(first, -1), after(last, 1)]) {
        // There is nothing before the first address, nor behind the last.
        if (first === "0.0.0.0" && outside !== "1.0.0.0") continue;
        if (last === "255.255.255.255" && outside === "0.0.0.0") continue;
        assertEquals(networkOf(form(outside)), "internet", form(outside));
      }
    }
  }
});

Deno.test("of IPv6 what is assigned to the internet is global, and nothing else", () => {
  const cases: Record<string, boolean> = {
    "1fff:ffff::1": true,
    "2000::": false,
    "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": false,
    "4000::1": true,
    "[2606:4700::1111]": false,
    "2606:4700::1111%eth0": false,
    // An address of IPv4 in another place says nothing.
    "0:0:0:0:1::": true,
    "::1:0:0:0": true,
    "0:0:0:0:ffff:0:808:808": true,
    "0:0:0:0:0:1:808:808": true,
    "64:ff9c::8.8.8.8": true,
    "65:ff9b::8.8.8.8": true,
    "2003:a00:1::": false,
    "2001:0:a00:1::": true,
    "2001:200::": false,
    // Each group stands where it is, with and without a gap.
    "64:ff9b:0:0:0:0:808:808": false,
    "2002:808:808:a00:1::": false,
    "2002:a00:1:808:808:1:1:1": true,
    "::ffff:808:7f00": false,
    "::ffff:7f00:808": true,
    "64:ff9b::808:a00": false,
    "64:ff9b::a00:808": true,
    "2606:4700": true,
    ":::": true,
    "2606::g": true,
    "": true,
    "1.1.1.1.": true,
    "0x7f.1.1.1": true,
  };
  for (const [address, expected] of Object.entries(cases)) {
    assertEquals(networkOf(address) !== "internet", expected, address);
  }
});

Deno.test("networkOf tells private networks of IPv6 from this host, its link and the rest", () => {
  const cases: Record<string, Network> = {
    "fc00::1": "private",
    "fdff:ffff::1": "private",
    "fbff::1": "host",
    "fe00::1": "host",
    "fe80::1%eth0": "host",
    "::1": "host",
    "::": "host",
    "::ffff:10.0.0.1": "private",
    "::ffff:127.0.0.1": "host",
    "localhost": "host",
  };
  for (const [address, expected] of Object.entries(cases)) {
    assertEquals(networkOf(address), expected, address);
  }
});

Deno.test("isLoopback() knows this host, and no other", () => {
  for (
    const host of [
      "localhost",
      "LOCALHOST:5000",
      "127.0.0.1",
      "127.9.8.7:1",
      "[::1]",
      "[::1]:5000",
    ]
  ) {
    assert(isLoopback(host), host);
  }
  for (
    const host of [
      "ghcr.io",
      "127.0.0.1.example.com",
      "localhost.example.com",
      "128.0.0.1",
      "[::2]:1",
      "10.127.0.0.1",
    ]
  ) {
    assert(!isLoopback(host), host);
  }
});

Deno.test("addressGroups() reads IPv4 and IPv6, and nothing else", () => {
  const cases: [string, number[] | undefined][] = [
    ["1.2.3.4", [0, 0, 0, 0, 0, 0xffff, 0x102, 0x304]],
    ["::ffff:1.2.3.4", [0, 0, 0, 0, 0, 0xffff, 0x102, 0x304]],
    ["2001:db8::1", [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]],
    ["::", [0, 0, 0, 0, 0, 0, 0, 0]],
    ["1:2:3:4:5:6:7:8", [1, 2, 3, 4, 5, 6, 7, 8]],
  ];
  for (
    const text of ["", "1", "abcd", "1.2.3", "1.2.3.256", "01.2.3.4", "[::1]"]
  ) {
    cases.push([text, undefined]);
  }
  for (const [text, groups] of cases) {
    assertEquals(addressGroups(text), groups, text);
  }
});
