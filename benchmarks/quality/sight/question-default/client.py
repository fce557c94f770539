class Client:
    def __init__(self, url, timeout=30, retries=4):
        self.url = url
        self.timeout = timeout
        self.retries = retries

    def get(self, path, retries=None):
        return self.url + path
