package mm

import "time"

// throttleMost is the longest that a READ or WRITE waits while the host holds far more than its share. It does not wait
// for the trimmer: it gives the trimmer time.
const throttleMost = 5 * time.Millisecond

// throttle delays a request that arrives while the host holds far more of our pages than its share, in small steps while
// that lasts, and never longer than throttleMost.
func (s *System) throttle() {
	if !s.cache.crowded.Load() || !s.farOverLimit() {
		return
	}
	s.pressure.stall()
	defer s.pressure.resume()
	for waited := time.Duration(0); waited < throttleMost && s.farOverLimit(); {
		s.trimmer.kick()
		const step = 500 * time.Microsecond
		time.Sleep(step)
		waited += step
	}
}

// farOverLimit leaves the trimmer a batch's room before requests are delayed.
func (s *System) farOverLimit() bool {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	far := s.far()
	s.cache.crowded.Store(far)
	return far
}

// far is farOverLimit. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) far() bool {
	limit := s.cache.most(false)
	return s.hostPages()+s.cache.leaving > limit+limit/8+trimViews*ViewPages
}
