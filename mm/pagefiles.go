package mm

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// pageFiles is the table of page files. A location names a file by its number, so that a file keeps its own for as long as
// it is there; compressed memory is one as well, but promises nothing and is in no group.
//
// Files come and go while requests run. A number is given up only when no slot of its file is in use, and so no location
// names it. Adding and removing is changing the memory: one at a time, by who has System.resizing.
type pageFiles struct {
	byNumber [maxPageFiles + 1]atomic.Pointer[pageFile]
	// groups are the files that slots are taken from, those of one priority together and those of the highest first. The
	// slices are replaced, never changed.
	groups atomic.Pointer[[][]*pageFile]
	turn   atomic.Uint32 // whose turn it is among equals
}

const (
	// maxPageFiles is how many there can be: a location has eight bits for the number.
	maxPageFiles = 255
	// compressedNumber is compressed memory's.
	compressedNumber = maxPageFiles
)

// at is a page file by number; there is one if a location names it.
func (t *pageFiles) at(number int) *pageFile { return t.byNumber[number].Load() }

// disks are all page files, by number, those that are being removed among them; compressed memory is none.
func (t *pageFiles) disks() (files []*pageFile) {
	for i := range maxPageFiles {
		if f := t.byNumber[i].Load(); f != nil {
			files = append(files, f)
		}
	}
	return files
}

// all are disks and compressed memory.
func (t *pageFiles) all() []*pageFile {
	files := t.disks()
	if z := t.byNumber[compressedNumber].Load(); z != nil {
		files = append(files, z)
	}
	return files
}

// order is the files that slots are taken from, by priority.
func (t *pageFiles) order() [][]*pageFile {
	if g := t.groups.Load(); g != nil {
		return *g
	}
	return nil
}

// inUse are the files of order, in that order.
func (t *pageFiles) inUse() []*pageFile { return slices.Concat(t.order()...) }

// freeNumber is the lowest number that no page file has; −1 if there is none.
func (t *pageFiles) freeNumber() int {
	for i := range maxPageFiles {
		if t.byNumber[i].Load() == nil {
			return i
		}
	}
	return -1
}

// setInUse makes files those that slots are taken from.
func (t *pageFiles) setInUse(files []*pageFile) {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b *pageFile) int { return cmp.Compare(b.priority, a.priority) })
	var groups [][]*pageFile
	for i, f := range files {
		if i == 0 || f.priority != files[i-1].priority {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], f)
	}
	t.groups.Store(&groups)
}

// allocSlots takes up to n consecutive slots: of the page files of the highest priority that have any or can grow to have
// some, in turns. It may do I/O: no lock may be held.
func (s *System) allocSlots(n uint64) (loc location, got uint64) {
	for _, group := range s.files.order() {
		for {
			turn := 0
			if len(group) > 1 {
				turn = int(s.files.turn.Add(1))
			}
			for i := range group {
				f := group[(turn+i)%len(group)]
				if slot, got := f.alloc(n); got > 0 {
					return makeLocation(f.index, slot), got
				}
			}
			if !s.commit.extend(group) {
				break
			}
		}
	}
	return 0, 0
}

// freeLocation gives a slot back; 0 is no slot.
func (s *System) freeLocation(l location) {
	if l != 0 {
		s.files.at(l.file()).free(l.slot())
	}
}

// openPageFile makes a page file of a store, under a number that is free. No slot is taken from it yet.
func (s *System) openPageFile(number int, c PageFileConfig) (*pageFile, error) {
	f, err := newPageFile(number, c, s.config.Encrypt, s.config.Wipe, &s.listener)
	if err != nil {
		return nil, err
	}
	f.freed = func() { s.wiper.kick() }
	s.files.byNumber[number].Store(f)
	return f, nil
}

// slotsOnDisk is how many slots there are in all page files.
func (s *System) slotsOnDisk() (n uint64) {
	for _, f := range s.files.disks() {
		n += f.info().Size
	}
	return n
}

// giveBackSlots gives space that page files do not need to the disk.
func (s *System) giveBackSlots() {
	for _, f := range s.files.inUse() {
		s.commit.shrink(f)
	}
}

// wipeStep overwrites slots that were freed. It returns how many.
func (s *System) wipeStep() (n uint64) {
	for _, f := range s.files.disks() {
		n += f.wipe(clusterPages, s.zeroPage)
	}
	return n
}

// wipeLoop overwrites slots that were freed, if that is asked for.
func (s *System) wipeLoop(t *thread) {
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		}
		for !t.stopped() && s.wipeStep() > 0 {
		}
	}
}
