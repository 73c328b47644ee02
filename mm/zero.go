package mm

import (
	"slices"
	"time"

	"memfs/mm/offheap"
	"memfs/mm/pfn"
)

const (
	zeroBatch = 512
	// dropRun is how many frames must lie together for giving them back to the host to be cheaper than filling them.
	dropRun = 8
	// zeroDelay is how long frames may be free before they are zeroed: most are taken again at once, or others join them.
	zeroDelay = 100 * time.Millisecond
)

// zeroLoop is the zero-page thread. It is kicked by the first frame that becomes free. Runs of free frames go back to the
// host, which gives zeroed memory at the next touch; single ones are filled.
func (s *System) zeroLoop(t *thread) {
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		}
		select {
		case <-t.quit:
			return
		case <-time.After(zeroDelay):
		}
		for !t.stopped() && s.zeroStep() > 0 {
		}
	}
}

// zeroStep zeroes up to zeroBatch Free frames.
func (s *System) zeroStep() uint64 {
	var batch []pfn.Frame
	s.pfn.Lock()
	for len(batch) < zeroBatch {
		f := s.pfn.NextFree()
		if f == 0 {
			break
		}
		batch = append(batch, f)
	}
	s.pfn.Unlock()
	slices.Sort(batch)
	for i := 0; i < len(batch); {
		n := 1
		for i+n < len(batch) && batch[i+n] == batch[i]+pfn.Frame(n) {
			n++
		}
		s.zeroRun(batch[i], n)
		i += n
	}
	s.pfn.Lock()
	for _, f := range batch {
		s.pfn.ZeroDone(f)
	}
	s.pfn.Unlock()
	s.n.zeroedPages.Add(uint64(len(batch)))
	return uint64(len(batch))
}

// zeroRun zeroes n frames from f on.
func (s *System) zeroRun(f pfn.Frame, n int) {
	b := s.pfn.Run(f, n)
	if n < dropRun || offheap.Drop(b) != nil {
		clear(b)
	}
}

// ZeroFree zeroes every Free frame. It returns how many.
func (s *System) ZeroFree() (n uint64) {
	for {
		step := s.zeroStep()
		if step == 0 {
			return n
		}
		n += step
	}
}
