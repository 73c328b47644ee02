package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// ErrIncompressible is what a Compressed store answers to a page that does not get small enough to be worth its while.
var ErrIncompressible = errors.New("does not compress")

// Compressed is a store that keeps its slots compressed, in anonymous memory. A page that is one 8-byte word over and
// over costs no memory at all. It takes one page a call; what it costs is in Usage, and the caller keeps that within a
// budget.
//
// # Memory
//
// Compressed pages are cut to size classes of classStep bytes. A chunk of chunkBytes holds objects of one class; a chunk
// without objects goes back to the host at once. Objects are found by chunk and index, so that nothing here has pointers.
type Compressed struct {
	codec codec

	mu sync.Mutex
	// +checklocks:mu
	mem []byte // all chunks, reserved at once
	// +checklocks:mu
	chunks []chunk
	// +checklocks:mu
	partial [classes + 1][]uint32 // by class: chunks with room
	// +checklocks:mu
	empty []uint32 // chunks in no use
	// +checklocks:mu
	slots []object
	// +checklocks:mu
	use Usage
	// +checklocks:mu
	wipe bool

	scratch sync.Pool // of *[]byte
}

// Usage is what a Compressed store holds, and what that costs.
type Usage struct {
	Pages  uint64 // slots in use
	Same   uint64 // of which one word over and over
	Bytes  uint64 // of the others, compressed
	Memory uint64 // bytes that all this takes, with what is lost to chunks not full
	// Rejected counts pages that did not compress.
	Rejected uint64
}

const (
	chunkBytes = 16 << 10
	classStep  = 128
	maxObject  = 3 << 10 // a page that does not get this small is not kept
	classes    = maxObject / classStep
)

// object is one slot.
type object struct {
	where uint64 // chunk << 16 | index; the word of a page that is one word over and over
	sum   uint32 // CRC-32C of slot number and page
	size  uint16 // compressed; 0 is such a word
	used  bool
}

// chunk is chunkBytes of objects of one class.
type chunk struct {
	class uint8
	live  uint8
	free  [2]uint64 // one bit an object
}

func objectsOf(class int) int { return min(chunkBytes/(class*classStep), 128) }

// codec compresses one page.
type codec interface {
	encode(dst, page []byte) []byte
	decode(page, src []byte) ([]byte, error)
}

// Codecs are the names of the codecs that there are.
var Codecs = []string{"s2", "zstd"}

type s2Codec struct{}

func (s2Codec) encode(dst, page []byte) []byte          { return s2.Encode(dst[:cap(dst)], page) }
func (s2Codec) decode(page, src []byte) ([]byte, error) { return s2.Decode(page, src) }

type zstdCodec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

func newZstd() (*zstdCodec, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2),
		zstd.WithWindowSize(SlotSize), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return &zstdCodec{e, d}, nil
}

func (z *zstdCodec) encode(dst, page []byte) []byte { return z.encoder.EncodeAll(page, dst[:0]) }
func (z *zstdCodec) decode(page, src []byte) ([]byte, error) {
	return z.decoder.DecodeAll(src, page[:0])
}

// NewCompressed makes a store of at most memory bytes and no slots. The codec is one of Codecs.
func NewCompressed(codecName string, memory uint64) (*Compressed, error) {
	c := &Compressed{}
	c.scratch.New = func() any { b := make([]byte, 0, s2.MaxEncodedLen(SlotSize)); return &b }
	switch codecName {
	case "s2":
		c.codec = s2Codec{}
	case "zstd":
		z, err := newZstd()
		if err != nil {
			return nil, err
		}
		c.codec = z
	default:
		return nil, fmt.Errorf("no codec %q: there are %v", codecName, Codecs)
	}
	n := max(memory/chunkBytes, 1)
	mem, err := unix.Mmap(-1, 0, int(n*chunkBytes), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem, c.chunks = mem, make([]chunk, n)
	c.empty = make([]uint32, n)
	for i := range c.empty {
		c.empty[i] = uint32(int(n) - 1 - i)
	}
	return c, nil
}

// Name says what it is.
func (c *Compressed) Name() string { return "compressed memory" }

// SetWipe has pages overwritten when they are discarded. Buffers in which they are packed and unpacked are not.
func (c *Compressed) SetWipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wipe = true
}

// Usage is what the store holds at the moment.
func (c *Compressed) Usage() Usage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use
}

func (c *Compressed) failed(op string, slot uint64, err error) error {
	return &Error{Path: c.Name(), Op: op, Slot: slot, Count: 1, Err: err}
}

// WriteSlots stores one page; see Store. ErrIncompressible if it does not get small enough, unix.ENOSPC if no memory is
// left for it. The slot must not hold a page.
func (c *Compressed) WriteSlots(slot uint64, bufs [][]byte) error {
	if len(bufs) != 1 || len(bufs[0]) != SlotSize {
		return c.failed("write", slot, errUnaligned)
	}
	page := bufs[0]
	o := object{sum: Checksum(slot, page), used: true}
	if word, same := sameWord(page); same {
		o.where = word
		return c.put(slot, o, nil)
	}
	buf := c.scratch.Get().(*[]byte)
	defer c.scratch.Put(buf)
	packed := c.codec.encode(*buf, page)
	if len(packed) > maxObject {
		c.mu.Lock()
		c.use.Rejected++
		c.mu.Unlock()
		return ErrIncompressible
	}
	o.size = uint16(len(packed))
	return c.put(slot, o, packed)
}

// put keeps an object in a slot.
func (c *Compressed) put(slot uint64, o object, packed []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slot >= uint64(len(c.slots)) {
		return c.failed("write", slot, errOutside)
	}
	if c.slots[slot].used {
		return c.failed("write", slot, errors.New("the slot holds a page"))
	}
	if o.size > 0 {
		at, ok := c.allocLocked((len(packed) + classStep - 1) / classStep)
		if !ok {
			return c.failed("write", slot, unix.ENOSPC)
		}
		o.where = at
		copy(c.bytesLocked(at), packed)
		c.use.Bytes += uint64(o.size)
	} else {
		c.use.Same++
	}
	c.use.Pages++
	c.slots[slot] = o
	return nil
}

// allocLocked takes an object of a class.
// +checklocks:c.mu
func (c *Compressed) allocLocked(class int) (at uint64, ok bool) {
	if len(c.partial[class]) == 0 {
		if len(c.empty) == 0 {
			return 0, false
		}
		n := c.empty[len(c.empty)-1]
		c.empty = c.empty[:len(c.empty)-1]
		k := &c.chunks[n]
		*k = chunk{class: uint8(class)}
		for i := range objectsOf(class) {
			k.free[i/64] |= 1 << (i % 64)
		}
		c.partial[class] = append(c.partial[class], n)
		c.use.Memory += chunkBytes
	}
	n := c.partial[class][len(c.partial[class])-1]
	k := &c.chunks[n]
	i := bits.TrailingZeros64(k.free[0])
	if i == 64 {
		i += bits.TrailingZeros64(k.free[1])
	}
	k.free[i/64] &^= 1 << (i % 64)
	if k.live++; int(k.live) == objectsOf(class) {
		c.partial[class] = c.partial[class][:len(c.partial[class])-1]
	}
	return uint64(n)<<16 | uint64(i), true
}

// bytesLocked is the memory of an object.
// +checklocks:c.mu
func (c *Compressed) bytesLocked(at uint64) []byte {
	n, i := at>>16, at&0xffff
	size := uint64(c.chunks[n].class) * classStep
	start := n*chunkBytes + i*size
	return c.mem[start : start+size]
}

// freeLocked gives an object back, and its chunk to the host if that was the last in it.
// +checklocks:c.mu
func (c *Compressed) freeLocked(at uint64) {
	if c.wipe {
		clear(c.bytesLocked(at))
	}
	n, i := uint32(at>>16), at&0xffff
	k := &c.chunks[n]
	full := int(k.live) == objectsOf(int(k.class))
	k.free[i/64] |= 1 << (i % 64)
	k.live--
	list := &c.partial[k.class]
	switch {
	case k.live == 0:
		if j := slices.Index(*list, n); j >= 0 {
			*list = slices.Delete(*list, j, j+1)
		}
		c.empty = append(c.empty, n)
		c.use.Memory -= chunkBytes
		_ = unix.Madvise(c.mem[uint64(n)*chunkBytes:][:chunkBytes], unix.MADV_DONTNEED)
	case full:
		*list = append(*list, n)
	}
}

// ReadSlots unpacks consecutive slots; see Store. A slot that holds no page, or not the one that was written, is an error.
func (c *Compressed) ReadSlots(slot uint64, bufs [][]byte) error {
	for i, page := range bufs {
		if err := c.readSlot(slot+uint64(i), page); err != nil {
			return c.failed("read", slot+uint64(i), err)
		}
	}
	return nil
}

func (c *Compressed) readSlot(slot uint64, page []byte) error {
	if len(page) != SlotSize {
		return errUnaligned
	}
	buf := c.scratch.Get().(*[]byte)
	defer c.scratch.Put(buf)
	o, packed, err := c.packed(slot, (*buf)[:0])
	switch {
	case err != nil:
		return err
	case o.size == 0:
		for at := 0; at < SlotSize; at += 8 {
			binary.LittleEndian.PutUint64(page[at:], o.where)
		}
	default:
		got, err := c.codec.decode(page, packed)
		if err != nil {
			return err
		}
		if len(got) != SlotSize || &got[0] != &page[0] {
			return errDamaged
		}
	}
	if Checksum(slot, page) != o.sum {
		return errDamaged
	}
	return nil
}

var errDamaged = errors.New("not what was written there")

// packed copies what is in a slot.
func (c *Compressed) packed(slot uint64, buf []byte) (object, []byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slot >= uint64(len(c.slots)) || !c.slots[slot].used {
		return object{}, nil, errOutside
	}
	o := c.slots[slot]
	if o.size > 0 {
		buf = append(buf, c.bytesLocked(o.where)[:o.size]...)
	}
	return o, buf, nil
}

// Grow makes room for the records of this many slots; see Store.
func (c *Compressed) Grow(slots uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := uint64(len(c.slots)); slots > n {
		c.slots = append(c.slots, make([]object, slots-n)...)
	}
	return nil
}

// Discard empties n slots; those that hold no page are left alone.
func (c *Compressed) Discard(slot, n uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; n > 0; slot, n = slot+1, n-1 {
		if slot >= uint64(len(c.slots)) {
			return c.failed("discard", slot, errOutside)
		}
		o := &c.slots[slot]
		switch {
		case !o.used:
			continue
		case o.size > 0:
			c.freeLocked(o.where)
			c.use.Bytes -= uint64(o.size)
		default:
			c.use.Same--
		}
		c.use.Pages--
		*o = object{}
	}
	return nil
}

// Reserve has nothing to do: a discarded slot costs what is written to it.
func (c *Compressed) Reserve(uint64, uint64) error { return nil }

// Close gives the memory back.
func (c *Compressed) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	mem := c.mem
	c.mem, c.slots = nil, nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// sameWord reports whether a page is one word over and over.
func sameWord(page []byte) (word uint64, same bool) {
	word = binary.LittleEndian.Uint64(page)
	for at := 8; at < len(page); at += 8 {
		if binary.LittleEndian.Uint64(page[at:]) != word {
			return 0, false
		}
	}
	return word, true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is CRC-32C over the slot number and the page, so that a page that comes back from another slot is caught too.
func Checksum(slot uint64, page []byte) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], slot)
	return crc32.Update(crc32.Update(0, castagnoli, b[:]), castagnoli, page)
}
