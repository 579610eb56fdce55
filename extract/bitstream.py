"""What the first bits of a packet tell of its picture: may decoding start there afresh?

Containers flag key frames, but an mp4 without `stss` and an AVI without an index flag every packet.
Leaving out what nobody needs is exact only between true key frames, so these are read from the
bitstream itself. In a codec that is not read here only the first packet counts, and everything is
decoded. Knows bytes alone, no decoding library.

Sources: ITU-T H.264 7.3.1, H.265 7.3.1.2, H.263 5.1; ISO 11172-2 2.4.2.5, 13818-2 6.2.3, 14496-2
6.2.5; RFC 6386 9.1 (VP8), RFC 9043 4.4 (FFV1); VP9 and AV1 bitstream specifications 6.2, 5.9.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_HEVC_RANDOM_ACCESS = range(16, 24)  # nal_unit_type of BLA, IDR and CRA pictures
_HEVC_FIRST_NON_PICTURE = 32


class Bitstream:
    """Reads the packets of one stream.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: what the container keeps of it.
        intra_only: whether every picture of this codec stands for itself.
    """

    def __init__(self, codec: str, extradata: bytes, *, intra_only: bool) -> None:
        self.codec = codec
        self._intra_only = intra_only or codec == "png"
        at = {"h264": 4, "hevc": 21}.get(codec, 0)  # lengthSizeMinusOne in avcC and hvcC
        prefixed = extradata[:1] == b"\x01" and len(extradata) > at
        self._length_bytes = (extradata[at] & 3) + 1 if prefixed else 0

    def starts_afresh(self, data: memoryview) -> bool:
        """Whether this picture and those shown after it need none before it."""
        if self._intra_only:
            return True
        if self.codec == "h264":
            return next((kind for kind in self._h264_kinds(data) if 1 <= kind <= 5), 0) == 5
        if self.codec == "hevc":
            return self._hevc_picture(data)[0] in _HEVC_RANDOM_ACCESS
        rule = _RULES.get(self.codec)
        return rule is not None and rule(bytes(data))

    def has_h264_headers(self, data: memoryview) -> bool:
        """Whether a sequence parameter set stands before the first slice."""
        kinds = (kind for kind in self._h264_kinds(data) if kind == 7 or 1 <= kind <= 5)
        return next(kinds, 1) == 7

    def hevc_layer(self, data: memoryview) -> int:
        """nuh_temporal_id of the picture."""
        return self._hevc_picture(data)[1]

    def _h264_kinds(self, data: memoryview) -> Iterator[int]:
        return (first & 0x1F for first, _ in self._nal_headers(data))

    def _hevc_picture(self, data: memoryview) -> tuple[int, int]:
        """nal_unit_type and temporal id of the first slice."""
        for first, second in self._nal_headers(data):
            if (kind := first >> 1 & 0x3F) < _HEVC_FIRST_NON_PICTURE:
                return kind, max(0, (second & 7) - 1)
        return _HEVC_FIRST_NON_PICTURE, 0

    def _nal_headers(self, data: memoryview) -> Iterator[tuple[int, int]]:
        for position in self._nal_starts(data):
            if position + 1 < len(data):
                yield data[position], data[position + 1]

    def _nal_starts(self, data: memoryview) -> Iterator[int]:
        """Start of each NAL unit: behind its length (mp4, mkv) or a start code (Annex B)."""
        if size := self._length_bytes:
            position = 0
            while position + size < len(data):
                yield position + size
                position += size + int.from_bytes(data[position : position + size], "big")
            return
        raw = bytes(data)
        position = raw.find(b"\x00\x00\x01")
        while position >= 0:
            yield position + 3
            position = raw.find(b"\x00\x00\x01", position + 3)


def _bits(data: bytes, start: int, count: int) -> int:
    """An unsigned number of `count` bits, `start` bits from the beginning; zeros follow the end."""
    head = int.from_bytes(data[:16].ljust(16, b"\0"), "big")
    return head >> (128 - start - count) & ((1 << count) - 1)


def _behind(data: bytes, code: bytes) -> bytes:
    """What follows the first start code of a kind; nothing where there is none."""
    return data[at + len(code) :][:16] if (at := data.find(code)) >= 0 else b""


def _mpeg1_or_2(data: bytes) -> bool:
    return _bits(_behind(data, b"\0\0\1\0"), 10, 3) == 1  # picture_coding_type


def _mpeg4(data: bytes) -> bool:
    vop = _behind(data, b"\0\0\1\xb6")
    return bool(vop) and _bits(vop, 0, 2) == 0  # vop_coding_type


def _vp9(data: bytes) -> bool:
    at = 5 if _bits(data, 2, 2) == 3 else 4  # profile 3 has a reserved bit
    return _bits(data, at, 2) == 0  # show_existing_frame, frame_type


def _av1(data: bytes) -> bool:
    """The first frame or frame header, behind temporal delimiter, sequence header and metadata."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        length = len(data) - at
        if sized:
            length, at = _leb128(data, at)
        if kind in (3, 6):
            # Neither shown once more nor kept for later: a key frame that is shown now.
            return _bits(data[at : at + 1], 0, 4) == 0b0001
        at += length
    return False


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 56, 7):
        byte = data[at] if at < len(data) else 0
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
    return value, at


def _h263(data: bytes) -> bool:
    """Behind 22 bits of start code and 8 of time: PTYPE of 13 bits, or its extension."""
    if _bits(data, 0, 22) != 0b100000:
        return False
    if _bits(data, 35, 3) != 7:  # source format
        return _bits(data, 38, 1) == 0
    options = 18 if _bits(data, 38, 3) == 1 else 0  # UFEP: OPPTYPE comes first
    return _bits(data, 41 + options, 3) == 0


def _flv1(data: bytes) -> bool:
    """Sorenson's H.263: start code of 17 bits, version 5, time 8, and a size."""
    if _bits(data, 0, 17) != 1:
        return False
    size_bits = {0: 16, 1: 32}.get(_bits(data, 30, 3), 0)
    return _bits(data, 33 + size_bits, 2) == 0


_RULES: dict[str, Callable[[bytes], bool]] = {
    "av1": _av1,
    "ffv1": lambda data: _bits(data, 0, 16) >= 0x7F80,  # the first symbol of the range coder
    "flv1": _flv1,
    "h263": _h263,
    "h263p": _h263,
    "mpeg1video": _mpeg1_or_2,
    "mpeg2video": _mpeg1_or_2,
    "mpeg4": _mpeg4,
    "msmpeg4v2": lambda data: _bits(data, 0, 2) == 0,
    "msmpeg4v3": lambda data: _bits(data, 0, 2) == 0,
    "vp8": lambda data: _bits(data, 7, 1) == 0,
    "vp9": _vp9,
    "wmv1": lambda data: _bits(data, 0, 2) == 0,
    "wmv2": lambda data: _bits(data, 0, 1) == 0,
}
