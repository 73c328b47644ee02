package mm

import "memfs/mm/pfn"

// FrameUse is what a frame is used for.
type FrameUse uint8

// The uses.
const (
	UnusedFrame   FrameUse = iota
	FileFrame              // a page of a file
	PrivateFrame           // a page of a process
	CombinedFrame          // a page that several pages share, of files and of processes
	RecordFrame            // the manager's own records took its memory
	BusyFrame              // taken for I/O or to be zeroed, nobody's page yet
)

var frameUses = [...]string{"Unused", "File", "Private", "Combined", "Record", "Busy"}

func (u FrameUse) String() string { return frameUses[u] }

// FrameInfo describes one frame, as the PFN database and the PTE that it belongs to have it.
type FrameInfo struct {
	Frame uint64
	pfn.Info
	Shares uint32 // working sets that map it
	Use    FrameUse
	Page   uint64 // of its file, or virtual page of its process
	Cached bool   // the host kernel may hold a copy

	Host  Host   // of the file; nil for other uses, and if the file is being deleted
	Space *Space // whose private page it is; nil for other uses

	segment uint32
}

// frameBatch is how many frames are looked at in one hold of the PFN lock.
const frameBatch = 64

// EachFrame calls f for every frame of the memory in order, with no lock held, until f returns false. A few dozen frames
// are seen at one moment; however many there are, nobody is held up for longer than those take, and nothing is collected.
func (s *System) EachFrame(f func(*FrameInfo) bool) {
	batch := make([]FrameInfo, frameBatch)
	for first := pfn.Frame(1); ; first += frameBatch {
		n := s.frames(first, batch)
		if n == 0 {
			return
		}
		s.nameFrames(batch[:n])
		for i := range batch[:n] {
			if !f(&batch[i]) {
				return
			}
		}
	}
}

// frames copies what is known of the frames from first on.
func (s *System) frames(first pfn.Frame, batch []FrameInfo) (n int) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for f := first; f <= s.pfn.Top() && n < len(batch); f++ {
		batch[n] = s.frameInfo(f)
		n++
	}
	return n
}

// +checklocks:s.pfn.mu
func (s *System) frameInfo(f pfn.Frame) FrameInfo {
	i := FrameInfo{Frame: uint64(f), Info: s.pfn.Info(f)}
	switch {
	case i.Record:
		i.Use = RecordFrame
	case i.Owner != 0:
		o := owner(i.Owner)
		l := s.rec.leaves.At(o.leaf())
		i.Page, i.segment = l.base+uint64(o.index()), l.seg
		if i.Use = FileFrame; l.flags&leafPrivate != 0 {
			i.Use = PrivateFrame
		} else {
			i.Cached = l.host>>o.index()&1 != 0
		}
		switch i.Shares = i.Info.Shares; {
		case i.State != pfn.Active:
		case i.Use == PrivateFrame, i.Cached, i.Shares == 0: // the system cache's, too
			i.Shares++
		}
		if l.flags&leafCombined != 0 {
			i.Use, i.Shares = CombinedFrame, s.combined.pages[i.Page].refs
		}
	case i.Refs > 0 || i.State == pfn.Transition:
		i.Use = BusyFrame
	}
	return i
}

// nameFrames finds out whose segments the frames' pages are in.
func (s *System) nameFrames(batch []FrameInfo) {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	for i := range batch {
		f := &batch[i]
		if g := s.segs[f.segment]; g != nil {
			f.Host, f.Space = g.host, g.space
		}
	}
}

// Copy is where the store's copy of the frame's page is; ok is false if no store has one.
func (f *FrameInfo) Copy() (file int, slot uint64, ok bool) {
	at := location(f.Original)
	if at == 0 {
		return 0, 0, false
	}
	return at.file(), at.slot(), true
}
