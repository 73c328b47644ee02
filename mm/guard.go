package mm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"memfs/mm/offheap"
	"memfs/mm/store"
)

// A guard stands between a page file and its store. It keeps a record a slot, off the Go heap, by which it tells whether
// the bytes that come back from a slot are those that went there: anything else is errChecksum, never other bytes.
//
// A slot's record belongs to whoever owns the slot; a guard needs no lock.
type guard interface {
	// seal returns what to store for pages that go to the consecutive slots from slot. The caller hands it to release
	// when it is stored.
	seal(slot uint64, pages [][]byte) (sealed [][]byte)
	release(sealed [][]byte)
	// open turns what was read from a slot into the page that went there, in place. After an error the page's bytes are
	// undefined.
	open(slot uint64, page []byte) error
	// close wipes keys and gives the records back.
	close() error
}

// errChecksum means that a slot's bytes are not what was written there.
var errChecksum = errors.New("checksum mismatch")

// What one slot of a page file costs in records, in bytes: what its guard keeps of it, and its bit.
const (
	SlotBytes       = 4 + 1.0/8
	SealedSlotBytes = sealBytes + 1.0/8
)

// slotBytes is what a slot costs under a configuration.
func (c Config) slotBytes() float64 {
	bytes := SlotBytes
	if c.Encrypt {
		bytes = SealedSlotBytes
	}
	if c.Wipe {
		bytes += 1.0 / 8 // that it waits to be overwritten
	}
	return bytes
}

func newGuard(index int, slots uint64, encrypt bool) (guard, error) {
	if encrypt {
		return newSealer(index, slots)
	}
	return newChecksums(slots)
}

// checksums is the guard that leaves pages as they are.
type checksums struct {
	sums []uint32 // CRC-32C of slot number and bytes
	mem  []byte
}

func newChecksums(slots uint64) (*checksums, error) {
	mem, err := offheap.Map(int(slots*4) + PageSize)
	if err != nil {
		return nil, err
	}
	return &checksums{mem: mem, sums: offheap.Of[uint32](mem)}, nil
}

func (c *checksums) seal(slot uint64, pages [][]byte) [][]byte {
	for i, b := range pages {
		c.sums[slot+uint64(i)] = store.Checksum(slot+uint64(i), b)
	}
	return pages
}

func (c *checksums) release([][]byte) {}

func (c *checksums) open(slot uint64, page []byte) error {
	if store.Checksum(slot, page) != c.sums[slot] {
		return errChecksum
	}
	return nil
}

func (c *checksums) close() error { return offheap.Unmap(c.mem) }

const (
	tagBytes   = 16
	countBytes = 6 // 2^48 pages, a whole EiB, can be sealed under one key
	sealBytes  = tagBytes + countBytes
	keyBytes   = 32
)

// sealer is the guard that encrypts: AES-256-GCM under a key that is made with the page file, lies in locked memory alone
// and is wiped with it. What is left on the disk is noise to everybody from then on, the same process included. The tag
// is the checksum.
//
// The nonce is the number of the page file and a count of all pages that it ever sealed, so that none is used twice; the
// slot number is authenticated with the page, so that one that comes back from another slot is caught.
type sealer struct {
	index  uint32
	aead   cipher.AEAD
	count  atomic.Uint64
	seals  [][sealBytes]byte // by slot: count and tag
	mem    []byte            // of seals
	locked [][]byte          // memory that knows the key

	buffers sync.Pool // of *[]byte, PageSize + tagBytes: a page with its tag behind it
	batches sync.Pool // of *[][]byte: room for the pages of one write
}

func newSealer(index int, slots uint64) (*sealer, error) {
	s := &sealer{index: uint32(index)}
	s.buffers.New = func() any { b := make([]byte, PageSize+tagBytes); return &b }
	if err := s.makeKey(); err != nil {
		return nil, err
	}
	var err error
	if s.mem, err = offheap.Map(int(slots)*sealBytes + PageSize); err != nil {
		s.wipe()
		return nil, err
	}
	s.seals = offheap.Of[[sealBytes]byte](s.mem)
	return s, nil
}

// makeKey makes the cipher. The key itself is gone when it returns: what is left of it is in the cipher's own tables.
func (s *sealer) makeKey() error {
	page, err := offheap.Map(PageSize)
	if err != nil {
		return err
	}
	defer func() { _ = offheap.Unmap(page) }()
	if err := unix.Mlock(page); err != nil {
		return errKeyMemory(err)
	}
	key := page[:keyBytes]
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	if err := s.lock(block); err != nil {
		return err
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		s.wipe()
		return err
	}
	return s.lock(s.aead)
}

// lock keeps an object of the cipher's, which holds the key, in memory and out of core dumps: the collector does not move
// objects. Its pages stay locked until the process ends, for others may share them.
func (s *sealer) lock(object any) error {
	v := reflect.ValueOf(object)
	size := v.Type().Elem().Size()
	bytes := unsafe.Slice((*byte)(v.UnsafePointer()), size)
	s.locked = append(s.locked, bytes)
	first := uintptr(v.UnsafePointer()) &^ (PageSize - 1)
	end := (uintptr(v.UnsafePointer()) + size + PageSize - 1) &^ (PageSize - 1)
	if _, _, e := unix.Syscall(unix.SYS_MLOCK, first, end-first, 0); e != 0 {
		s.wipe()
		return errKeyMemory(e)
	}
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, first, end-first, unix.MADV_DONTDUMP)
	return nil
}

func errKeyMemory(err error) error {
	return fmt.Errorf("no memory can be locked for the page file's key (ulimit -l): %w; mount with --encrypt=false to do without", err)
}

// wipe forgets the key.
func (s *sealer) wipe() {
	for _, b := range s.locked {
		clear(b)
	}
	s.locked = nil
}

// nonce is the nonce of the page that was sealed as number count.
func (s *sealer) nonce(count uint64) (nonce [12]byte) {
	binary.LittleEndian.PutUint32(nonce[:], s.index)
	binary.LittleEndian.PutUint64(nonce[4:], count)
	return nonce
}

func (s *sealer) seal(slot uint64, pages [][]byte) [][]byte {
	room := s.room(len(pages))
	first := s.count.Add(uint64(len(pages))) - uint64(len(pages))
	for i, page := range pages {
		at, nonce := slot+uint64(i), s.nonce(first+uint64(i))
		var name [8]byte
		binary.LittleEndian.PutUint64(name[:], at)
		// The tag lies where the next page goes, until its own record has it.
		sealed := s.aead.Seal(room[i][:0], nonce[:], page, name[:])
		record := &s.seals[at]
		copy(record[:countBytes], nonce[4:])
		copy(record[countBytes:], sealed[PageSize:])
	}
	return room
}

// room is page-aligned memory for n pages, one behind the other, with some to spare behind the last.
func (s *sealer) room(n int) [][]byte {
	if pages, _ := s.batches.Get().(*[][]byte); pages != nil && cap(*pages) >= n {
		return (*pages)[:n]
	}
	mem := make([]byte, (n+2)*PageSize)
	if over := int(uintptr(unsafe.Pointer(&mem[0])) % PageSize); over != 0 {
		mem = mem[PageSize-over:]
	}
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = mem[i*PageSize : (i+1)*PageSize]
	}
	return pages
}

func (s *sealer) release(sealed [][]byte) {
	sealed = sealed[:cap(sealed)]
	s.batches.Put(&sealed)
}

func (s *sealer) open(slot uint64, page []byte) error {
	record := &s.seals[slot]
	var count, name [8]byte
	copy(count[:countBytes], record[:countBytes])
	binary.LittleEndian.PutUint64(name[:], slot)
	nonce := s.nonce(binary.LittleEndian.Uint64(count[:]))
	scratch := s.buffers.Get().(*[]byte)
	copy(*scratch, page)
	copy((*scratch)[PageSize:], record[countBytes:])
	_, err := s.aead.Open(page[:0], nonce[:], *scratch, name[:])
	s.buffers.Put(scratch)
	if err != nil {
		return errChecksum
	}
	return nil
}

func (s *sealer) close() error {
	s.wipe()
	return offheap.Unmap(s.mem)
}
