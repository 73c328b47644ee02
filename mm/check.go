package mm

import (
	"fmt"
	"math/bits"

	"memfs/mm/pfn"
)

// Check proves the manager's invariants at this moment and returns every one that does not hold:
//
//   - the lists, Active and Transition add up to all frames, and no frame of the memory is retired (pfn.Check);
//   - every word with a frame and that frame's owner point at each other, and their states agree;
//   - a valid page of a file is in a mapped view, of the host's or of a process's;
//   - each PTE of a process that maps a file's page finds it valid, and is counted there;
//   - a locked page of a process is valid and held, and each working set is counted right;
//   - the host's pages and the queue of views are counted right, and what files with a limit have; all parts of the PFN lock
//     together have no more room for pages of the host's than there is;
//   - every used slot belongs to exactly one page, or to I/O under way;
//   - what words and records hold adds up to the attached commit, and that to no more than is charged; files hold no
//     more than they may.
//
// It walks everything under the PFN lock, under which alone all of this changes.
func (s *System) Check() []error {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	c := checking{errs: s.pfn.Check(), resident: make(map[uint32]uint64), shares: make(map[pfn.Frame]uint32),
		sharers: make(map[uint64]uint64), limited: make(map[uint32]*fileLimit)}
	for _, f := range s.files.all() {
		c.owned[f.index] = make([]uint64, (f.max+63)/64)
	}
	s.checkLeaves(&c)
	s.checkFrames(&c)
	s.checkQueue(&c)
	s.checkBooks(&c)
	s.checkSpaces(&c)
	s.checkCombined(&c)
	s.checkLimits(&c)
	return c.errs
}

type checking struct {
	errs      []error
	owned     [maxPageFiles + 1][]uint64 // by page file: a bit for each slot that a page was found to own
	found     uint64                     // bits set in owned
	inFlight  uint64                     // pages under I/O or pinned in Transition: each may own a slot not found here
	committed uint64
	hostPages [pfn.Parts]uint64 // by part
	mapped    uint64
	resident  map[uint32]uint64     // pages in working sets of private segments, by segment
	shares    map[pfn.Frame]uint32  // PTEs of processes that map a file's page, by frame
	sharers   map[uint64]uint64     // PTEs that name a combined page, by its number
	named     uint64                // such PTEs
	limited   map[uint32]*fileLimit // what files with a limit have, by segment
	locked    uint64                // pages locked in private segments
}

// pageName names a page in a finding.
type pageName struct {
	section uint32
	page    uint64
}

func (p pageName) String() string { return fmt.Sprintf("section %d page %d", p.section, p.page) }

func (c *checking) bad(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// +checklocks:s.pfn.mu
func (s *System) checkLeaves(c *checking) {
	r := s.rec
	for id := uint32(1); id <= r.leaves.Top(); id++ {
		l := r.leaves.At(id)
		if l.seg == 0 {
			continue // free
		}
		if l.flags&leafPrivate != 0 {
			s.checkPrivate(c, id, l)
		} else {
			c.hostPages[partOf(l.seg)] += uint64(bits.OnesCount64(l.host))
		}
		if l.flags&leafMapped != 0 {
			c.mapped++
		}
		if l.flags&leafLimited != 0 {
			s.checkLimited(c, l)
		}
		if l.host != 0 && l.flags&^leafLimited == 0 {
			c.bad("leaf %d: host pages but in no view", id)
		}
		var live int
		for i, w := range r.slice(l) {
			if w != 0 {
				live++
			}
			if w.isCommitted() && l.flags&leafCombined == 0 {
				c.committed++
			}
			s.checkWord(c, id, l, uint(i), w)
		}
		if live != int(l.live) {
			c.bad("leaf %d: %d live words, counted %d", id, live, l.live)
		}
	}
}

// +checklocks:s.pfn.mu
func (s *System) checkWord(c *checking, id uint32, l *leaf, i uint, w pte) {
	where := pageName{l.seg, l.base + uint64(i)}
	switch w.kind() {
	case kindValid, kindTransition:
		if f := w.frame(); f == 0 || f > s.pfn.Top() {
			c.bad("%v: frame %d does not exist", where, f)
			return
		}
		info := s.pfn.Info(w.frame())
		if owner(info.Owner) != makeOwner(id, i) {
			c.bad("%v: frame %d belongs to another page", where, w.frame())
		}
		if valid := info.State == pfn.Active; valid != (w.kind() == kindValid) {
			c.bad("%v: PTE kind %d, but frame %d is %v", where, w.kind(), w.frame(), info.State)
		}
		if w.kind() == kindValid && l.host>>i&1 == 0 && l.flags&(leafTrimming|leafPrivate) == 0 && info.Refs == 0 && info.Shares == 0 && !info.Locked {
			c.bad("%v: valid, but in no mapped view", where)
		}
		if info.Writing {
			c.inFlight++
		}
		if info.Original != 0 {
			s.checkSlot(c, location(info.Original))
		}
	case kindShared:
		s.checkShared(c, where, l, w)
	case kindPaged:
		s.checkSlot(c, w.location())
	case kindCombined:
		s.checkSharer(c, where, w.number())
	case kindInIO:
		c.inFlight++
		if w.location() != 0 {
			s.checkSlot(c, w.location())
		}
	}
}

// checkSlot notes that a page owns a slot, which no other page may.
func (s *System) checkSlot(c *checking, at location) {
	if c.owned[at.file()] == nil || at.slot()/64 >= uint64(len(c.owned[at.file()])) {
		c.bad("%v belongs to a page, but there is no such slot", at)
		return
	}
	word, bit := &c.owned[at.file()][at.slot()/64], uint64(1)<<(at.slot()%64)
	switch {
	case *word&bit != 0:
		c.bad("%v belongs to two pages", at)
		return
	case !s.files.at(at.file()).isUsed(at.slot()):
		c.bad("%v belongs to a page, but is free", at)
	}
	*word |= bit
	c.found++
}

// +checklocks:s.pfn.mu
func (s *System) checkFrames(c *checking) {
	for f := pfn.Frame(1); f <= s.pfn.Top(); f++ {
		i := s.pfn.Info(f)
		if i.Shares != c.shares[f] {
			c.bad("frame %d (%v): %d PTEs of processes map it, counted %d", f, i.State, c.shares[f], i.Shares)
		}
		if i.State == pfn.Transition && (i.Deleting || i.Owner == 0) && i.Writing {
			c.inFlight++
		}
		if i.Owner == 0 || i.State == pfn.Transition && i.Refs > 0 {
			continue // nobody's, or on its way to or from a page
		}
		o := owner(i.Owner)
		if w := s.rec.word(s.rec.leaves.At(o.leaf()), o.index()); !w.hasFrame() || w.frame() != f {
			c.bad("frame %d (%v): its page does not point back at it", f, i.State)
		}
	}
}

// +checklocks:s.pfn.mu
func (s *System) checkQueue(c *checking) {
	var n uint64
	prev := uint32(0)
	for id := s.cache.head; id != 0; id = s.rec.leaves.At(id).next {
		l := s.rec.leaves.At(id)
		if l.flags&leafMapped == 0 || l.prev != prev {
			c.bad("leaf %d: queue of views is broken", id)
			return
		}
		if prev, n = id, n+1; n > c.mapped {
			c.bad("queue of views holds more than the %d mapped views", c.mapped)
			return
		}
	}
	if n != c.mapped || n != s.cache.views {
		c.bad("%d mapped views, %d on the queue, counted %d", c.mapped, n, s.cache.views)
	}
	var room uint64
	for i, n := range c.hostPages {
		if t := &s.tallies[i]; n != t.hostPages {
			c.bad("the host may hold %d pages of part %d, counted %d", n, i, t.hostPages)
		}
		room += s.tallies[i].room
	}
	held, most := s.hostPages()+s.cache.leaving+s.cache.foreign, s.cache.most(true)
	if room > 0 && held+room > most {
		c.bad("the host may hold %d pages and %d more before anybody looks, but %d at most", held, room, most)
	}
}

// +checklocks:s.pfn.mu
func (s *System) checkBooks(c *checking) {
	var used uint64
	for _, f := range s.files.all() {
		used += f.info().Used
	}
	// Slots handed out to I/O that has not ended belong to no page yet.
	if used < c.found || used > c.found+c.inFlight {
		c.bad("%d slots are used, %d belong to pages, %d to I/O under way", used, c.found, c.inFlight)
	}
	s.book.mu.Lock()
	s.commit.mu.Lock()
	charged, attached, records := s.commit.charged, s.commit.attached, pagesOf(s.book.bytes)
	ofRecords, size := s.commit.records, s.commit.size
	s.commit.mu.Unlock()
	s.book.mu.Unlock()
	if want := c.committed + records; attached != want {
		c.bad("commit: %d pages attached, but words and records hold %d", attached, want)
	}
	if ofRecords != records {
		c.bad("commit: %d pages charged for records, which take %d", ofRecords, records)
	}
	if size > 0 && c.committed > size {
		c.bad("commit: files hold %d pages, more than the %d they may", c.committed, size)
	}
	if charged < attached {
		c.bad("commit: %d pages charged, but %d attached", charged, attached)
	}
}
