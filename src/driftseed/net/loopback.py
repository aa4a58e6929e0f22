"""Each remote device as one address of 127.0.0.0/8, so that a ban by address is a ban of a device."""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from typing import Final

from driftseed.core import limits
from driftseed.core.ids import DeviceId

_FIRST: Final = int(ipaddress.IPv4Address("127.0.1.0"))
_LAST: Final = int(ipaddress.IPv4Address("127.254.255.255"))
_COUNT: Final = _LAST - _FIRST + 1


class LoopbackAddresses:
    """A table from devices to addresses: the same device has the same address while it is remembered.

    127.0.0.x (other services of this machine) and 127.255.x.x (the broadcast's neighbourhood) are left out.

    Args:
        size: most devices remembered; the one not used for longest gives way.
    """

    def __init__(self, size: int = limits.LOOPBACK_ADDRESSES_MAX) -> None:
        self._size = size
        self._by_device: OrderedDict[DeviceId, str] = OrderedDict()
        self._by_address: dict[str, DeviceId] = {}

    def address_of(self, device: DeviceId) -> str:
        """The device's address; given to it now if it has none.

        Which one follows from its id, so that it comes back after a restart unless another device took it.
        """
        known = self._by_device.get(device)
        if known is not None:
            self._by_device.move_to_end(device)
            return known
        if len(self._by_device) >= self._size:
            _, freed = self._by_device.popitem(last=False)
            del self._by_address[freed]
        slot = int.from_bytes(hashlib.sha256(device.encode()).digest()[:8], "big") % _COUNT
        while (address := str(ipaddress.IPv4Address(_FIRST + slot))) in self._by_address:
            slot = (slot + 1) % _COUNT
        self._by_device[device] = address
        self._by_address[address] = device
        return address

    def device_at(self, address: str) -> DeviceId | None:
        """Whose address this is: for what the engine says of a peer."""
        return self._by_address.get(address)

    def __len__(self) -> int:
        return len(self._by_device)
