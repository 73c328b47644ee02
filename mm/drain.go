package mm

import (
	"cmp"
	"slices"
	"time"
)

// Page files that come and go. To remove one is to move: first no slot of it is handed out and nothing is promised against
// it any more, then every page that has its bytes there gets another place. A page in a frame just becomes Modified; one
// that is nowhere else is read, and written to another page file, or if those are full goes back to memory.

// withSlots is the budget with so many slots more or less, each of which costs bytes of records.
func (b Budget) withSlots(slots int64, cost float64) Budget {
	was := pagesOf(b.SlotBytes)
	tables := b.tables()
	b.PageFile += uint64(slots)
	b.PTEBytes += b.tables() - tables
	b.SlotBytes = uint64(max(0, int64(b.SlotBytes)+int64(float64(slots)*cost)))
	b.CommitLimit += uint64(slots) + was - pagesOf(b.SlotBytes)
	return b
}

// tables is what page tables take at the commit limit.
func (b Budget) tables() uint64 { return (b.Frames + b.PageFile) * uint64(leafCost(3)) / ViewPages }

// promised is how many frames may be promised.
func (b Budget) promised() uint64 { return b.CommitLimit - b.PageFile }

// AddPageFile has pages go to one more page file. The store is taken over; after an error it is the caller's again. It does
// I/O: no lock may be held.
func (s *System) AddPageFile(c PageFileConfig) (number int, err error) {
	if err := s.beginResize(); err != nil {
		return 0, err
	}
	defer s.endResize()
	if number = s.files.freeNumber(); number < 0 {
		return 0, refuse(StatusInvalidParameter, "there are %d page files already, the most there can be", maxPageFiles)
	}
	b := s.Budget()
	grown := b.withSlots(int64(c.Max), s.slotCost)
	records := grown.PFNBytes + grown.SlotBytes + grown.tables()
	if spare := pagesOf(grown.SlotBytes) - pagesOf(b.SlotBytes); records > b.Memory/2 || spare >= b.promised() {
		most := float64(b.Memory/2-min(b.Memory/2, b.PFNBytes+b.SlotBytes+b.tables())) / (s.slotCost + float64(leafCost(3))/ViewPages)
		most = min(most, float64(b.promised())*PageSize/s.slotCost/2)
		return 0, refuse(StatusInvalidParameter, "the records of %s more page file would not fit into half of the memory, %s: "+
			"give it at most %s, or more memory", size(c.Max*PageSize), size(b.Memory), size(uint64(most)*PageSize))
	}
	// The records of its slots are promised first.
	if !s.commit.setFrames(grown.promised()) {
		return 0, refuse(StatusCommitmentLimit, "no room for the records of %s more page file: remove files first, or give more memory",
			size(c.Max*PageSize))
	}
	f, err := s.openPageFile(number, c)
	if err != nil {
		s.commit.setFrames(b.promised())
		return 0, err
	}
	s.commit.addFile(f)
	s.config.PageFiles = append(slices.Clone(s.config.PageFiles), c)
	s.rebudget(grown)
	s.writer.kick()
	return number, nil
}

// rebudget makes b the budget in force, whose frames are what they were.
func (s *System) rebudget(b Budget) {
	s.pfn.Lock()
	b.Size = s.budget.Size
	s.budget = b
	s.pfn.Unlock()
	s.balancer.kick()
}

// drainPatience is how long a removal goes on with no page moved.
const drainPatience = 20 * time.Second

// RemovePageFile brings the pages of a page file to other places and closes it. It returns how many it moved. If what is
// promised does not fit without it, that is StatusInvalidParameter; if a page cannot be read from it, StatusInPageError;
// if pages find no other place for long, StatusBusy. It is used as before then, and no page has lost a byte. It waits for
// store I/O: no lock may be held.
func (s *System) RemovePageFile(number int) (moved uint64, err error) {
	if err := s.beginResize(); err != nil {
		return 0, err
	}
	defer s.endResize()
	var f *pageFile
	if number >= 0 && number < maxPageFiles {
		f = s.files.at(number)
	}
	if f == nil {
		return 0, refuse(StatusInvalidParameter, "there is no page file %d: .proc/pagefiles lists them", number)
	}
	was := s.Budget()
	b := was.withSlots(-int64(f.max), s.slotCost)
	f.setClosing(true)
	if short := s.commit.dropFile(f, b.promised()); short > 0 {
		f.setClosing(false)
		return 0, refuse(StatusInvalidParameter, "page file %d cannot go: %s more is promised than the rest can hold; "+
			"delete files, give more memory, or add another page file first", number, size(short*PageSize))
	}
	if moved, err = s.drain(f); err != nil {
		f.setClosing(false)
		s.commit.addFile(f)
		s.commit.setFrames(was.promised())
		return moved, err
	}
	s.files.byNumber[number].Store(nil)
	c := s.config.PageFiles
	if i := slices.IndexFunc(c, func(c PageFileConfig) bool { return c.Store == f.store }); i >= 0 {
		s.config.PageFiles = slices.Delete(slices.Clone(c), i, i+1)
	}
	s.rebudget(b)
	return moved, f.close()
}

// drain gives every page that has its bytes in a page file another place.
func (s *System) drain(f *pageFile) (moved uint64, err error) {
	patience := s.config.Patience
	if patience == 0 {
		patience = drainPatience
	}
	least := ^uint64(0)
	for last := time.Now(); !f.empty(); s.sweepCombined() {
		n, bad := s.drainOnce(f)
		moved += n
		left := f.info().Used + f.info().Wiping
		switch {
		case n > 0, left < least:
			last = time.Now()
		case bad > 0:
			return moved, refuse(StatusInPageError, "page file %d cannot go: %d pages of it cannot be read; delete the files that "+
				"they belong to (reading those fails)", f.index, bad)
		case s.stopping.Load() || time.Since(last) > patience:
			return moved, refuse(StatusBusy, "page file %d cannot go yet: %d pages find no other place; try again", f.index, f.info().Used)
		default:
			time.Sleep(time.Millisecond) // what is left is under I/O, or waits for the writer or the wiper
		}
		least = min(least, left)
		if f.wipes {
			s.wiper.kick()
			f.wipe(^uint64(0), s.zeroPage)
		}
	}
	return moved, nil
}

// drainOnce looks at every page once. It returns how many it moved, and how many could not be read.
func (s *System) drainOnce(f *pageFile) (moved, bad uint64) {
	for id := uint32(1); id <= s.rec.leaves.Top(); id++ {
		g, key := s.usedBy(id, f)
		if g == nil {
			continue
		}
		n, moving := g.drainView(key, f)
		moved += n
		n, b := s.moveAll(f, moving)
		moved, bad = moved+n, bad+b
		s.pfn.Lock()
		short := s.pfn.Available() < 2*s.lowFrames()
		s.pfn.Unlock()
		if short {
			_, _ = s.writeCluster(0) // an error is the listener's; the pages stay
		}
	}
	return moved, bad
}

// usedBy says whose view a leaf is, if one of its pages has its bytes in a page file.
func (s *System) usedBy(id uint32, f *pageFile) (g *Segment, key uint64) {
	s.pfn.Lock()
	l := s.rec.leaves.At(id)
	seg, key, found := l.seg, l.base>>viewShift, false
	if seg != 0 {
		for _, w := range s.rec.slice(l) {
			if at := s.locationOf(w); at != 0 && at.file() == f.index {
				found = true
				break
			}
		}
	}
	s.pfn.Unlock()
	if !found {
		return nil, 0
	}
	return s.segment(seg), key
}

// locationOf is where a store has a page with PTE w; 0 is nowhere. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) locationOf(w pte) location {
	switch w.kind() {
	case kindValid, kindTransition:
		return location(s.pfn.Info(w.frame()).Original)
	case kindPaged:
		return w.location()
	}
	return 0
}

// drainView has the pages of a view that are in frames do without their slots in a page file, and marks those that are
// nowhere else as under I/O.
func (g *Segment) drainView(key uint64, f *pageFile) (moved uint64, moving []migration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := g.leafAt(key)
	if id == 0 {
		return 0, nil
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	for i, w := range s.rec.slice(l) {
		at := s.locationOf(w)
		if at == 0 || at.file() != f.index {
			continue
		}
		if w.hasFrame() {
			s.freeLocation(location(s.pfn.Divorce(w.frame())))
			moved++
			continue
		}
		page := l.base + uint64(i)
		s.rec.set(l, uint(i), w.as(kindInIO))
		moving = append(moving, migration{g: g, page: page, from: at, io: g.beginIO(page, page)})
	}
	return moved, moving
}

// moveAll moves pages that are marked as under I/O out of a page file: to others, else to memory. Those that find no place
// stay.
func (s *System) moveAll(f *pageFile, moving []migration) (moved, bad uint64) {
	slices.SortFunc(moving, func(a, b migration) int { return cmp.Compare(a.from, b.from) })
	for len(moving) > 0 {
		n := 1
		for n < len(moving) && moving[n].from.slot() == moving[0].from.slot()+uint64(n) {
			n++
		}
		m, b := s.moveRun(f, moving[:n])
		moved, bad = moved+m, bad+b
		moving = moving[n:]
	}
	return moved, bad
}

// moveRun moves the pages of consecutive slots.
func (s *System) moveRun(f *pageFile, moving []migration) (moved, bad uint64) {
	pages := make([][]byte, len(moving))
	for i := range pages {
		pages[i] = alignedPage()
	}
	errs := f.read(moving[0].from.slot(), pages)
	s.n.pageReads.Add(1)
	s.n.pagesInput.Add(uint64(len(pages)))
	if errs != nil {
		good := moving[:0:0]
		var bytes [][]byte
		for i, m := range moving {
			if errs[i] == nil {
				good, bytes = append(good, m), append(bytes, pages[i])
				continue
			}
			bad++
			s.countReadError(errs[i])
			s.endMigration([]migration{m}, 0)
		}
		moving, pages = good, bytes
	}
	for len(moving) > 0 {
		at, got := s.allocSlots(uint64(len(moving)))
		if got == 0 {
			moved += s.moveHome(moving, pages)
			break
		}
		moved += s.writeMigrated(at, moving[:got], pages[:got])
		moving, pages = moving[got:], pages[got:]
	}
	return moved, bad
}

// countReadError counts a page that a store did not give back.
func (s *System) countReadError(err error) {
	if err == errChecksum {
		s.n.checksumErrors.Add(1)
	} else {
		s.n.readErrors.Add(1)
	}
}

// moveHome gives pages frames. Those that find none stay where they are.
func (s *System) moveHome(moving []migration, pages [][]byte) (moved uint64) {
	for i, m := range moving {
		if s.giveFrame(m, pages[i]) {
			moved++
		}
	}
	return moved
}

func (s *System) giveFrame(m migration, page []byte) bool {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	defer m.g.endIO(m.io)
	s.pfn.Lock()
	defer s.pfn.Unlock()
	id, i := m.g.leafAt(m.page>>viewShift), uint(m.page%ViewPages)
	l := s.rec.leaves.At(id)
	f, _ := s.alloc(makeOwner(id, i), 0, false)
	if f == 0 {
		s.rec.set(l, i, s.rec.word(l, i).as(kindPaged))
		return false
	}
	copy(s.pfn.Bytes(f), page)
	s.pfn.SetPriority(f, m.g.rule.Priority)
	s.rec.set(l, i, transitionPTE(f))
	s.pfn.SetDirty(f)
	s.pfn.Unpin(f)
	s.freeLocation(m.from)
	return true
}
