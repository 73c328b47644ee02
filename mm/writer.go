package mm

import (
	"slices"
	"time"

	"memfs/mm/pfn"
)

const (
	// clusterPages is how many pages one page-out writes at most: 1 MiB.
	clusterPages = 256
	// modifiedAge is how long a page stays Modified, in seconds, while frames are plenty.
	modifiedAge = 10
)

// outgoing is a Modified page on its way out.
type outgoing struct {
	frame pfn.Frame
	seg   uint32
	page  uint64
}

// writeLoop is the modified page writer.
func (s *System) writeLoop(t *thread) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		case <-tick.C:
		}
		s.evictOver()
		for !t.stopped() {
			age, due := s.writeDue()
			if !due {
				break
			}
			n, err := s.writeCluster(age)
			for s.migrate() > 0 && !t.stopped() {
			}
			if err != nil {
				select { // the store is in trouble: not again at once
				case <-t.quit:
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
			if n == 0 {
				break
			}
		}
	}
}

// writeDue says whether pages must be written now, and how old they must be: any age if there are many or if frames are
// short, else modifiedAge.
func (s *System) writeDue() (age uint32, due bool) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	n := s.pfn.ModifiedCount()
	switch {
	case n == 0 || !s.slotsFree():
		return 0, false
	case n > s.budget.Frames/8 || s.pfn.Available() < 2*s.lowFrames():
		return 0, true
	default:
		return modifiedAge, true
	}
}

// slotsFree says whether any page file has a free slot, or can grow to have one.
func (s *System) slotsFree() bool {
	for _, f := range s.files.all() {
		if i := f.info(); f.hasFree() || f.limit() > i.Size && !i.Removing {
			return true
		}
	}
	return false
}

// writeCluster writes the oldest Modified pages, at least age seconds old, in one cluster: pages that are neighbours in
// their file get neighbouring slots. It returns how many it wrote.
func (s *System) writeCluster(age uint32) (uint64, error) {
	batch := make([]outgoing, 0, clusterPages)
	s.pfn.Lock()
	for len(batch) < clusterPages {
		f := s.pfn.NextModified(age)
		if f == 0 {
			break
		}
		batch = append(batch, s.outgoing(f))
	}
	s.pfn.Unlock()
	return s.writeOut(batch)
}

// outgoing says whose page a frame holds. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) outgoing(f pfn.Frame) outgoing {
	o := owner(s.pfn.Info(f).Owner)
	l := s.rec.leaves.At(o.leaf())
	return outgoing{frame: f, seg: l.seg, page: l.base + uint64(o.index())}
}

// writeOut writes frames taken from Modified to slots. Those that find no slot, or whose write fails, are Modified again.
func (s *System) writeOut(batch []outgoing) (written uint64, err error) {
	batch, written = s.compress(batch)
	slices.SortFunc(batch, func(a, b outgoing) int {
		if a.seg != b.seg {
			return int(a.seg) - int(b.seg)
		}
		return int(int64(a.page) - int64(b.page))
	})
	for len(batch) > 0 {
		at, got := s.allocSlots(uint64(len(batch)))
		if got == 0 {
			s.endWrite(batch, 0)
			return written, err
		}
		bufs := make([][]byte, got)
		for i := range bufs {
			bufs[i] = s.pfn.Bytes(batch[i].frame)
		}
		e := s.files.at(at.file()).write(at.slot(), bufs)
		if e != nil {
			err = e
			for i := range got {
				s.files.at(at.file()).free(at.slot() + i)
			}
			s.endWrite(batch[:got], 0)
			s.n.writeErrors.Add(got)
		} else {
			s.endWrite(batch[:got], at)
			written += got
			s.n.pageWrites.Add(1)
			s.n.pagesOutput.Add(got)
		}
		batch = batch[got:]
	}
	return written, err
}

// endWrite ends the page-out of frames to consecutive slots from at, 0 if they were not written.
func (s *System) endWrite(batch []outgoing, at location) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for i, o := range batch {
		loc := location(0)
		if at != 0 {
			loc = makeLocation(at.file(), at.slot()+uint64(i))
		}
		if !s.pfn.EndWrite(o.frame, uint64(loc)) {
			s.freeLocation(loc)
		}
	}
}

// FlushModified writes every page that is Modified now. It returns how many it wrote.
func (s *System) FlushModified() (written uint64, err error) {
	if !s.slotsFree() {
		return 0, nil
	}
	s.pfn.Lock()
	todo := s.pfn.ModifiedCount()
	s.pfn.Unlock()
	for written < todo {
		n, err := s.writeCluster(0)
		written += n
		if err != nil || n == 0 {
			return written, err
		}
	}
	return written, nil
}

// Flush writes the segment's Modified pages. It returns how many it wrote.
func (g *Segment) Flush() (written uint64, err error) {
	s := g.sys
	if !s.slotsFree() {
		return 0, nil
	}
	for key := uint64(0); ; {
		var batch []outgoing
		g.mu.Lock()
		for len(batch) < clusterPages-ViewPages {
			k, id := g.nextLeaf(key)
			if id == 0 {
				break
			}
			key = k + 1
			s.pfn.Lock()
			for _, w := range s.rec.slice(s.rec.leaves.At(id)) {
				if w.kind() == kindTransition && s.pfn.TakeModified(w.frame()) {
					batch = append(batch, s.outgoing(w.frame()))
				}
			}
			s.pfn.Unlock()
		}
		g.mu.Unlock()
		if len(batch) == 0 {
			return written, err
		}
		n, e := s.writeOut(batch)
		written += n
		if e != nil {
			return written, e
		}
	}
}

// EmptyStandby takes every Standby frame away from its page, whose bytes are in its page file. It returns how many.
func (s *System) EmptyStandby() uint64 {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return s.pfn.PurgeStandby(0, pfn.Priorities-1)
}

// EmptyStandby0 is EmptyStandby for the lowest priority only.
func (s *System) EmptyStandby0() uint64 {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return s.pfn.PurgeStandby(0, 0)
}
