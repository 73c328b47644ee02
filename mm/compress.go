package mm

import (
	"errors"
	"sync"
	"unsafe"

	"memfs/mm/offheap"
	"memfs/mm/store"
)

// CompressedStore is a store in memory that a page goes to before a page file (Windows Internals 7 ch. 5, "Memory
// compression"). store.Compressed is one.
type CompressedStore interface {
	Store
	Usage() store.Usage
	SetWipe() // what is discarded is overwritten
}

// CompressedConfig says how pages are kept compressed in memory. New takes the store over and closes it at Close.
type CompressedConfig struct {
	Store CompressedStore
	Limit uint64 // bytes that it may take, of Memory; at most four fifths of the frames' bytes
	Slots uint64 // most pages in it; 0 = four times what Limit holds uncompressed
}

// slots is the most pages in the store.
func (c *CompressedConfig) slots() uint64 {
	if c.Slots > 0 {
		return c.Slots
	}
	return 4 * c.Limit / PageSize
}

// compressedSlotBytes is what one slot costs in records: its entry in the store, its owner and its bit.
const compressedSlotBytes = 16 + 8 + 1.0/8

// compression is the compressed store with its books. Its slots are those of a page file, the last of System.files, which
// promises nothing: its memory is charged as records are, and taken from the frames.
//
// A page that is read back leaves the store: it would be in memory twice. What stays longest goes on to a page file.
type compression struct {
	file   *pageFile
	store  CompressedStore
	limit  uint64  // bytes
	owners []owner // by slot; an element belongs to whoever owns the slot
	mem    []byte  // of owners

	mu sync.Mutex
	// +checklocks:mu
	charged uint64 // bytes of records
}

func newCompression(index int, c *CompressedConfig, l *Listener) (*compression, error) {
	slots := c.slots()
	mem, err := offheap.Map(int(slots*uint64(unsafe.Sizeof(owner(0)))) + PageSize)
	if err != nil {
		return nil, err
	}
	z := &compression{store: c.Store, limit: c.Limit, mem: mem, owners: offheap.Of[owner](mem)}
	z.file = &pageFile{index: index, name: "compressed memory", store: c.Store, max: slots, guard: unguarded{}, discards: true, listener: l}
	return z, nil
}

// unguarded is the guard of a store that guards itself.
type unguarded struct{}

func (unguarded) seal(_ uint64, pages [][]byte) [][]byte { return pages }
func (unguarded) release([][]byte)                       {}
func (unguarded) open(uint64, []byte) error              { return nil }
func (unguarded) close() error                           { return nil }

func (z *compression) close() error { return errors.Join(z.file.close(), offheap.Unmap(z.mem)) }

// full says whether the store has taken all that it may.
func (z *compression) full() bool { return z.store.Usage().Memory >= z.limit }

// compressedInfo is what is in compressed memory.
func (s *System) compressedInfo() CompressedInfo {
	z := s.compressed
	if z == nil {
		return CompressedInfo{}
	}
	u := z.store.Usage()
	return CompressedInfo{Pages: u.Pages, Same: u.Same, Bytes: u.Bytes, Memory: u.Memory, Limit: z.limit, Rejected: u.Rejected}
}

// settleCompression makes the charge match the memory that the store takes. It may do I/O: no lock may be held.
func (s *System) settleCompression() error {
	z := s.compressed
	if z == nil {
		return nil
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	memory := z.store.Usage().Memory
	switch {
	case memory > z.charged:
		if err := s.chargeRecord(int(memory - z.charged)); err != nil {
			return err
		}
	case memory < z.charged:
		s.ReleaseRecord(int(z.charged - memory))
	}
	z.charged = memory
	return nil
}

// compress stores frames taken from Modified in the compressed store, as far as they compress and it has room. It returns
// those that are left.
func (s *System) compress(batch []outgoing) (rest []outgoing, stored uint64) {
	z := s.compressed
	if z == nil {
		return batch, 0
	}
	rest = batch[:0]
	for _, o := range batch {
		if at := s.compressOne(o); at != 0 {
			s.endWrite([]outgoing{o}, at)
			stored++
		} else {
			rest = append(rest, o)
		}
	}
	s.n.pagesCompressed.Add(stored)
	return rest, stored
}

// compressOne stores one frame's page, and returns where; 0 if it cannot.
func (s *System) compressOne(o outgoing) location {
	return s.compressPage(s.ownerOf(o), s.pfn.Bytes(o.frame))
}

// compressPage stores the bytes of a page, and returns where; 0 if it cannot.
func (s *System) compressPage(o owner, page []byte) location {
	z := s.compressed
	if z.full() {
		return 0
	}
	slot, got := z.file.alloc(1)
	if got == 0 {
		if by, err := z.file.grow(growStep); err != nil || by == 0 {
			return 0
		}
		if slot, got = z.file.alloc(1); got == 0 {
			return 0
		}
	}
	z.owners[slot] = o
	if z.store.WriteSlots(slot, [][]byte{page}) != nil || s.settleCompression() != nil {
		z.file.free(slot)
		return 0
	}
	return makeLocation(z.file.index, slot)
}

// compressDirect stores pages that found no frame in compressed memory, as far as they compress and it has room. It returns
// those that are left.
func (w *writing) compressDirect() (rest []int) {
	s := w.g.sys
	if s.compressed == nil {
		return w.direct
	}
	for _, i := range w.direct {
		p := &w.pages[i]
		if p.at = s.compressPage(makeOwner(w.leaf, uint(p.index%ViewPages)), p.whole); p.at == 0 {
			rest = append(rest, i)
		}
	}
	s.n.pagesCompressed.Add(uint64(len(w.direct) - len(rest)))
	return rest
}

// ownerOf is the page that a frame on its way out holds.
func (s *System) ownerOf(o outgoing) owner {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return owner(s.pfn.Info(o.frame).Owner)
}

// isCompressed says whether a location is in the compressed store.
func (s *System) isCompressed(l location) bool {
	return s.compressed != nil && l != 0 && l.file() == s.compressed.file.index
}

// migration is one page on its way from the compressed store to a page file.
type migration struct {
	g    *Segment
	page uint64
	from location
	io   *pageIO
}

// Migrate does one step of the move of pages from compressed memory to a page file, as the modified page writer does when
// the former is nearly full. It returns how many moved.
func (s *System) Migrate() uint64 { return s.migrate() }

// migratePages is how many pages move at once.
const migratePages = 64

// migrate moves the pages that have been longest in the compressed store to a page file, if the store is nearly full. It
// returns how many moved.
func (s *System) migrate() uint64 {
	z := s.compressed
	if z == nil || len(s.files.order()) == 0 || z.store.Usage().Memory < z.limit-z.limit/16 {
		return 0
	}
	var moving []migration
	for _, slot := range z.file.oldest(migratePages) {
		if m, ok := s.beginMigration(makeLocation(z.file.index, slot)); ok {
			moving = append(moving, m)
		}
	}
	var moved uint64
	for len(moving) > 0 {
		at, got := s.allocSlots(uint64(len(moving)))
		if got == 0 {
			s.endMigration(moving, 0)
			break
		}
		moved += s.migrateTo(at, moving[:got])
		moving = moving[got:]
	}
	_ = s.settleCompression() // it shrank: nothing can fail
	s.n.pagesMigrated.Add(moved)
	return moved
}

// beginMigration marks the page in a slot as under I/O; false if it is not there any more, or about to leave.
func (s *System) beginMigration(from location) (m migration, ok bool) {
	o := s.compressed.owners[from.slot()]
	s.pfn.Lock()
	l := s.rec.leaves.At(o.leaf())
	seg, base := l.seg, l.base
	s.pfn.Unlock()
	g := s.segment(seg)
	if g == nil {
		return m, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leafAt(base>>viewShift) != o.leaf() {
		return m, false
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	w := s.rec.word(l, o.index())
	if !w.isPagedAt(from) {
		return m, false
	}
	s.rec.set(l, o.index(), w.as(kindInIO))
	page := base + uint64(o.index())
	return migration{g: g, page: page, from: from, io: g.beginIO(page, page)}, true
}

// migrateTo writes pages to the consecutive slots from at. It returns how many made it.
func (s *System) migrateTo(at location, moving []migration) (moved uint64) {
	disk := s.files.at(at.file())
	pages := make([][]byte, len(moving))
	for i, m := range moving {
		pages[i] = alignedPage()
		if errs := s.compressed.file.read(m.from.slot(), pages[i:i+1]); errs != nil {
			// It stays where it is: whoever touches it will hear of it. The slots behind go with it this time.
			s.endMigration(moving[i:], 0)
			for j := i; j < len(moving); j++ {
				disk.free(at.slot() + uint64(j))
			}
			moving, pages = moving[:i], pages[:i]
			break
		}
	}
	return s.writeMigrated(at, moving, pages)
}

// writeMigrated writes pages to the consecutive slots from at. It returns how many made it; the others stay where they are.
func (s *System) writeMigrated(at location, moving []migration, pages [][]byte) uint64 {
	if len(moving) == 0 {
		return 0
	}
	disk := s.files.at(at.file())
	if err := disk.write(at.slot(), pages); err != nil {
		s.n.writeErrors.Add(uint64(len(moving)))
		for i := range moving {
			disk.free(at.slot() + uint64(i))
		}
		s.endMigration(moving, 0)
		return 0
	}
	s.n.pageWrites.Add(1)
	s.n.pagesOutput.Add(uint64(len(moving)))
	s.endMigration(moving, at)
	return uint64(len(moving))
}

// endMigration ends the move of pages to the consecutive slots from at; 0 leaves them where they were.
func (s *System) endMigration(moving []migration, at location) {
	for i, m := range moving {
		m.g.mu.Lock()
		s.pfn.Lock()
		l := s.rec.leaves.At(m.g.leafAt(m.page >> viewShift))
		to := m.from
		if at != 0 {
			to = makeLocation(at.file(), at.slot()+uint64(i))
			s.freeLocation(m.from)
		}
		index := uint(m.page % ViewPages)
		s.rec.set(l, index, pagedPTE(to, s.rec.word(l, index).departure()))
		s.pfn.Unlock()
		m.g.endIO(m.io)
		m.g.mu.Unlock()
	}
}

// oldest is up to n used slots, those first that were taken longest ago: slots are handed out in a circle.
func (p *pageFile) oldest(n int) (slots []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range [...]span{{int64(p.hint), int64(p.size)}, {0, int64(p.hint)}} {
		for at := uint64(r.off); len(slots) < n; at++ {
			if at = p.skipLocked(at, uint64(r.end), 0); at >= uint64(r.end) {
				break
			}
			slots = append(slots, at)
		}
	}
	return slots
}
